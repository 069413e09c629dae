"""The tally: what the calls of this worker added up to, counted a few at a time.

Between two calls a worker runs through all of Celery and kombu. What it does once for each call
finds neither its code nor its data in the processor's caches, and takes about three times as long
as in a loop. So the end of a call that succeeded is only noted, and counted, logged and measured
with others: once there are ``MOST`` of them, ``LONGEST`` after the first, and before anybody is
told what they add up to. Any other end is told at once.

Runs in the worker main process. See also: :mod:`celery_budgets.worker.calls.roster`, which notes
them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from time import time
from typing import Any

from celery_budgets.model.outcomes import Outcome
from celery_budgets.telemetry import logs
from celery_budgets.telemetry.statistics import Statistics
from celery_budgets.worker.calls.ended_call import EndedCall, facts_of
from celery_budgets.worker.calls.recent import KILLS, RecentFailures
from celery_budgets.worker.calls.scopes import Scopes

__all__ = ["LONGEST", "MOST", "Tally"]

logger = logging.getLogger(__name__)

#: Calls that are noted before they are counted, and the longest that they may wait for it,
#: seconds.
MOST = 64
LONGEST = 0.1


class Tally:
    """Counts the calls that have ended.

    Args:
        failed: Told of each call that could not be counted or told of.
    """

    def __init__(self, failed: Callable[[], None]) -> None:
        #: Told the facts of every call that has ended (telemetry.logs.SCHEMA).
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []
        #: Has a function called that many seconds from now, in the event loop, which notes all
        #: calls then; ``None``: every call is counted at once, as on all pools but prefork.
        self.call_later: Callable[[float, Callable[[], None]], Any] | None = None
        #: What went wrong lately.
        self.recent = RecentFailures()
        self._failed = failed
        self._noted: deque[EndedCall] = deque()
        self._statistics = Statistics()
        self._scopes = Scopes()
        # Pool threads, the event loop and a thread that is asked for metrics all come here. Entered
        # again where the garbage collector, inside of it, ends a generator with a block.
        self._lock = threading.RLock()

    def note(self, ended: EndedCall) -> None:
        """Count a call that has ended: in a moment, or now where it is no mere success."""
        self._noted.append(ended)
        waiting = len(self._noted)
        if self.call_later is None or ended.outcome is not Outcome.SUCCEEDED or waiting >= MOST:
            self.count_noted()
        elif waiting == 1:
            self.call_later(LONGEST, self.count_noted)

    def count_noted(self) -> None:
        """Count the calls that have been noted, and tell of them."""
        with self._lock:
            counted = list(self._counted())
        # Not under the lock: handlers of the log, and listeners, have locks of their own.
        for ended, facts in counted:
            try:
                if isinstance(facts, Exception):
                    raise facts
                self._tell(facts, ended.ended_at)
            except Exception:
                self._failed()
                logger.exception("budgets.telemetry_failed task_id=%s", ended.task_id)

    def _counted(self) -> Iterator[tuple[EndedCall, dict[str, Any] | Exception]]:
        """Count what is noted; yield each call with its facts, or with why there are none."""
        while self._noted:
            ended = self._noted.popleft()
            try:
                facts = facts_of(ended)
                self._add(facts)
            except Exception as exc:
                yield ended, exc
            else:
                yield ended, facts

    def count(self, facts: Mapping[str, Any], reason: str | None = None) -> None:
        """Count and tell of a call that is no delivery: a block in a pool of this process.

        Args:
            facts: Those of its log record.
            reason: Why it was rejected, where it was.
        """
        with self._lock:
            self._add(facts)
            if reason is not None:
                self.reject(facts["lane"], facts["task"], reason)
        self._tell(facts, time())

    def reject(self, lane: str, task: str, reason: str) -> None:
        """Count a delivery that is not admitted: handed back, or failed."""
        with self._lock:
            self._statistics.reject(lane, task, reason)
            self.recent.count(lane, "rejected")

    def statistics(self) -> Statistics:
        """Return the statistics of now, which change no more."""
        self.count_noted()
        with self._lock:
            return self._statistics.copy()

    def of_scope(self, path: str) -> Statistics:
        """Return what the calls of a request scope added up to here."""
        self.count_noted()
        with self._lock:
            return self._scopes.statistics(path)

    def _add(self, facts: Mapping[str, Any]) -> None:
        self._statistics.add(facts)
        if facts["outcome"] in KILLS:
            self.recent.count(facts["lane"], facts["outcome"])
        self._scopes.add(facts)

    def _tell(self, facts: Mapping[str, Any], ended_at: float) -> None:
        logs.call_ended(facts, ended_at)
        for listener in self.listeners:
            listener(facts)
