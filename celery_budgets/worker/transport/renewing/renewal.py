"""Deliveries that are renewed: what a worker has in hand does not grow old in kombu's index.

So a call may take longer than the visibility timeout, which only says how soon the calls of a
worker that is gone start elsewhere. Renewed are running calls, those that wait here for a slot, for
the gate, for a paused lane or for their ETA.

A worker that stood still for longer than the timeout (SIGSTOP, a suspended machine) finds on waking
which of its deliveries were handed out again meanwhile, and tells so.

Physical limit: C code that keeps the interpreter lock of the worker main process for longer than
the timeout stops this thread too. On prefork no call runs there.

Runs in a thread of the worker main process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from time import time
from typing import Any, Protocol

from celery_budgets.shared_state.system_thread import SystemThread
from celery_budgets.worker.transport.renewing.in_hand import ARRIVED
from celery_budgets.worker.transport.renewing.unsent import Unsent

__all__ = ["LONGEST_PERIOD", "Index", "Renewal"]

logger = logging.getLogger(__name__)

#: Longest time between two renewals, seconds, however long the timeout is: others that share the
#: index may have a shorter one.
LONGEST_PERIOD = 20.0
#: Longest time after which it is looked again: after an error, and at what seems to be gone.
SOON = 1.0
#: The same for what seems to be another's: it is not acknowledged, or it would be gone.
AT_ONCE = 0.1


class Index(Protocol):
    """Where deliveries are renewed."""

    def scores(self, tags: list[str]) -> list[float | None]:
        """Return the time of each of *tags*; ``None`` for those that are gone."""
        ...

    def renew(self, tags: list[str], score: float) -> None:
        """Set the time of *tags*, of those that are not gone."""
        ...

    def held_by(self, holder: int, before: float) -> list[str]:
        """Return tags that *holder* has noted, by a time up to *before*."""
        ...

    def acknowledge(self, tags: list[str]) -> None:
        """Settle *tags*."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Renewal:
    """Renews what one worker has in hand.

    Args:
        timeout: The visibility timeout of the worker, seconds.
        in_hand: Returns its messages by delivery tag.
        on_lost: Told once of a message that was handed out again while it is in hand.
        after: Called after each renewal, with the index.
        unsent: Acknowledgements that are to be sent as soon as they can be.
        fetches_as: Returns the number by which the worker notes what it is fetching just now;
            ``None`` while it fetches nothing.
        clock: Returns the time as kombu writes it into the index.
    """

    def __init__(
        self,
        timeout: float,
        in_hand: Callable[[], Mapping[str, Any]],
        on_lost: Callable[[Any], None],
        after: Callable[[Any], None] = lambda index: None,
        unsent: Unsent | None = None,
        fetches_as: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time,
    ) -> None:
        self.period = min(timeout / 3, LONGEST_PERIOD)
        self._timeout = timeout
        self._in_hand = in_hand
        self._on_lost = on_lost
        self._after = after
        self._unsent = unsent or Unsent()
        self._fetches_as = fetches_as
        self._clock = clock
        self._index: Index | None = None
        self._outdated: list[Index] = []
        #: What we have written last, by tag: the message it was for, and its time.
        self._written: dict[str, tuple[Any, float]] = {}
        #: What seemed to be handed out again, and when that is believed; what has been told.
        self._suspected: dict[str, tuple[Any, float]] = {}
        self._lost: dict[str, Any] = {}
        #: Times that we may have written without hearing of it.
        self._tried: set[float] = set()
        self._looked_at = clock()
        self._failing_since: float | None = None
        self._back_at = float("-inf")
        self._thread: SystemThread | None = None

    def attach(self, index: Index) -> None:
        """Renew by *index* from now on, also after a reconnect; start the thread at the first."""
        if self._index is not None:
            self._outdated.append(self._index)
        self._index = index
        if self._thread is None:
            self._thread = SystemThread(self._run)
            self._thread.start()

    def is_steady(self) -> bool:
        """Return whether others, who renew as this worker does, have had the time to.

        Not after an outage, in which all that is in hand anywhere has grown old. Where none of it
        can be renewed for longer than the timeout, there is nothing to wait for.
        """
        now = self._clock()
        if self._failing_since is not None:
            return now - self._failing_since > self._timeout
        stood_still = now - self._looked_at > self._timeout / 2 + self.period
        return not stood_still and now - self._back_at > self.period

    def stop(self) -> None:
        """Renew no more; wait a little for what is still to be acknowledged."""
        if self._thread is not None:
            self._thread.stop()
            if self._unsent:
                self._thread.join(2 * SOON)

    def _run(self, thread: SystemThread) -> None:
        due = self._clock()
        while not thread.wait(min(SOON, max(0.0, due - self._clock()))):
            now = self._clock()
            # By the clock, which goes on while the machine is suspended; it may be set back.
            if now >= due or due - now > self.period:
                due = now + self.tick()
            self._send()
        self._send()
        self._close()

    def _send(self) -> None:
        if not self._unsent or self._index is None:
            return
        try:
            self._unsent.send(self._index)
        except Exception as exc:
            self._fail(exc)

    def tick(self) -> float:
        """Renew once; return the seconds until the next time. Never raises."""
        now = self._clock()
        try:
            self._renew(now)
            self._renew_unread(now)
            self._recover()
        except Exception as exc:
            self._tried.add(now)
            self._fail(exc)
            return min(SOON, self.period / 2)
        finally:
            self._looked_at = now
        self._look_around()
        if not self._suspected:
            return self.period
        return max(0.0, min(due for _, due in self._suspected.values()) - now)

    def _renew(self, now: float) -> None:
        messages = dict(self._in_hand())
        self._confirm(messages, now)
        mine = [tag for tag, message in messages.items() if not self._is_lost(tag, message)]
        assert self._index is not None
        renewed, kept = {}, {}
        # What is another's is left as that one has written it, or he would take it for lost.
        for tag, score in zip(mine, self._index.scores(mine) if mine else (), strict=True):
            message = messages[tag]
            if score is not None and not self._is_of_another(tag, message, score, now):
                renewed[tag] = message, now
                continue
            # Gone: it may be acknowledged at this moment, and kombu has not noted it yet.
            self._suspected.setdefault(tag, (message, now + (SOON if score is None else AT_ONCE)))
            if tag in self._written:
                kept[tag] = self._written[tag]
        if renewed:
            self._index.renew(list(renewed), now)
        self._written = {**kept, **renewed}
        self._tried.clear()

    def _renew_unread(self, now: float) -> None:
        """Renew what Redis has noted for this worker, and whose event loop has not read it yet.

        On gevent one body that blocks keeps it from reading for as long as that takes.
        """
        holder = self._fetches_as()
        if holder is not None and self._index is not None:
            # Younger ones have two thirds of the timeout left at the next look.
            tags = self._index.held_by(holder, now - self.period)
            self._index.renew(tags, now)

    def _look_around(self) -> None:
        try:
            self._after(self._index)
        except Exception:
            # Who may write kombu's keys need not be allowed to write others.
            logger.debug("budgets.fleet_unknown", exc_info=True)

    def _is_of_another(self, tag: str, message: Any, score: float, now: float) -> bool:
        """Return whether somebody else has written *score*: the message was delivered there."""
        known, ours = self._written.get(tag, (None, 0.0))
        if known is message or known is ARRIVED:
            return score != ours and score not in self._tried
        # First seen now. It can have been handed out again only if all stood still for as long as
        # the timeout since the last look, and its time is one at which we cannot have written it.
        return self._looked_at + self._timeout < score < now - SOON

    def _is_lost(self, tag: str, message: Any) -> bool:
        return tag in self._lost and self._lost[tag] is message

    def _confirm(self, messages: Mapping[str, Any], now: float) -> None:
        """Tell of those suspected at the last look that are still in hand.

        What is not may have been acknowledged at that moment, or was delivered anew to this worker.
        """
        for tag, message in list(self._lost.items()):
            if messages.get(tag) is not message:
                del self._lost[tag]
        for tag, (message, due) in list(self._suspected.items()):
            if messages.get(tag) is not message or message is ARRIVED:
                del self._suspected[tag]
            elif due <= now:
                del self._suspected[tag]
                self._lost[tag] = message
                self._on_lost(message)

    def _fail(self, error: Exception) -> None:
        if self._failing_since is None:
            self._failing_since = self._clock()
            logger.error(
                "budgets.renewal_failed: what is in hand could not be renewed, and is handed out "
                "again %g s after it was last; tried again until it can: %s", self._timeout, error,
            )  # fmt: skip

    def _recover(self) -> None:
        if self._failing_since is not None:
            self._failing_since, self._back_at = None, self._clock()
            logger.info("budgets.renewal_back: what is in hand is renewed again")
        self._close_outdated()

    def _close_outdated(self) -> None:
        while self._outdated:
            self._outdated.pop().close()

    def _close(self) -> None:
        try:
            self._close_outdated()
            if self._index is not None:
                self._index.close()
        except Exception:
            logger.debug("budgets.renewal_failed: not closed", exc_info=True)
