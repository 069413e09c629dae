"""The thread that reads the queues of this worker's lanes at the broker, when it is its turn.

In a thread, so that a slow broker does not hold up the event loop.

Runs in the worker main process. See also: :mod:`celery_budgets.worker.backlog.backlog`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Protocol

from celery_budgets.shared_state.system_thread import SystemThread
from celery_budgets.worker.backlog.backlog import STALE, Backlog, Reading

__all__ = ["TICK", "Queues", "Reader"]

logger = logging.getLogger(__name__)

#: Time between two looks whether it is this worker's turn, seconds.
TICK = 1.0


class Queues(Protocol):
    """The queues at a broker."""

    shows_messages: bool

    def read(self, queues: Iterable[str]) -> Mapping[str, tuple[int, float | None]]:
        """Return the number of messages, and when the oldest was published, by queue."""
        ...

    def rest(self) -> None:
        """Called while others read."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Reader:
    """Reads what is due.

    Args:
        backlog: Says what is due, and keeps the readings.
        clock: Returns monotonic seconds.
    """

    def __init__(self, backlog: Backlog, clock: Callable[[], float] = monotonic) -> None:
        self._backlog = backlog
        self._clock = clock
        self._queues: Queues | None = None
        self._outdated: list[Queues] = []
        self._thread: SystemThread | None = None
        self._failing = False
        self._read_at = clock()

    def attach(self, queues: Queues) -> None:
        """Read by *queues* from now on, also after a reconnect; start the thread at the first."""
        if self._queues is not None:
            self._outdated.append(self._queues)
        self._queues = queues
        self._backlog.read_by(shows_messages=queues.shows_messages)
        if self._thread is None:
            self._thread = SystemThread(self._run)
            self._thread.start()

    def stop(self) -> None:
        """Read no more; do not wait for a reading."""
        if self._thread is not None:
            self._thread.stop()

    def _run(self, thread: SystemThread) -> None:
        while not thread.wait(TICK):
            self.look()
        self._close(*self._outdated, *([self._queues] if self._queues is not None else []))

    def look(self) -> None:
        """Read what is due; never raises."""
        queues, due = self._queues, self._backlog.due()
        while self._outdated:
            self._close(self._outdated.pop())
        if queues is None:
            return
        if not due:
            if self._clock() - self._read_at > STALE:
                self._close_unused(queues)
            return
        try:
            found = queues.read(due)
        except Exception as exc:
            self._fail(due, exc)
            return
        self._keep(due, found)

    def _keep(self, due: list[str], found: Mapping[str, tuple[int, float | None]]) -> None:
        now = self._read_at = self._clock()
        for queue, (messages, oldest_at) in found.items():
            self._backlog.note(queue, Reading(now, messages, oldest_at))
        self._backlog.forget(queue for queue in due if queue not in found)
        if self._failing:
            self._failing = False
            logger.info("budgets.backlog_known: the queues can be read again")

    def _fail(self, due: list[str], error: Exception) -> None:
        self._backlog.forget(due)
        if not self._failing:
            self._failing = True
            logger.warning(
                "budgets.backlog_unknown queues=%s: the broker does not tell how many messages "
                "wait; asked again until it does: %s", ",".join(due), error,
            )  # fmt: skip

    def _close_unused(self, queues: Queues) -> None:
        try:
            queues.rest()
        except Exception:
            logger.debug("budgets.backlog_unknown: not closed", exc_info=True)

    def _close(self, *every: Queues) -> None:
        for queues in every:
            try:
                queues.close()
            except Exception:
                logger.debug("budgets.backlog_unknown: not closed", exc_info=True)
