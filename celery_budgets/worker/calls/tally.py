"""The tally: the statistics of this worker's calls, counted in batches.

Between two calls a worker runs through all of Celery and kombu, so work that is done once per call
misses the processor's caches and takes about three times as long as in a loop. So a successful
call is only queued, and then counted, logged and measured with others: once there are ``MOST`` of
them, ``LONGEST`` after the first, and before the statistics are read. Any other end is processed
at once.

Runs in the worker main process. See also: :mod:`celery_budgets.worker.calls.roster`, which reports
the calls.
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

#: Most calls that are queued before they are counted, and their longest wait, seconds.
MOST = 64
LONGEST = 0.1


class Tally:
    """Counts the calls that have ended.

    Args:
        failed: Called for each call that could not be counted or reported.
    """

    def __init__(self, failed: Callable[[], None]) -> None:
        #: Called with the fields of every ended call (telemetry.logs.SCHEMA).
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []
        #: Schedules a function in the event loop, after a delay in seconds; ``None``: every call
        #: is counted at once, as on all pools but prefork.
        self.call_later: Callable[[float, Callable[[], None]], Any] | None = None
        #: Recent failures.
        self.recent = RecentFailures()
        self._failed = failed
        self._noted: deque[EndedCall] = deque()
        self._statistics = Statistics()
        self._scopes = Scopes()
        # Used by pool threads, the event loop and the thread that serves metrics. Reentrant:
        # garbage collection inside it may close a generator that ends a block.
        self._lock = threading.RLock()

    def note(self, ended: EndedCall) -> None:
        """Count an ended call: with the next batch if it succeeded, else now."""
        self._noted.append(ended)
        waiting = len(self._noted)
        if self.call_later is None or ended.outcome is not Outcome.SUCCEEDED or waiting >= MOST:
            self.count_noted()
        elif waiting == 1:
            self.call_later(LONGEST, self.count_noted)

    def count_noted(self) -> None:
        """Count and report the queued calls."""
        with self._lock:
            counted = list(self._counted())
        # Not under the lock: log handlers and listeners have locks of their own.
        for ended, facts in counted:
            try:
                if isinstance(facts, Exception):
                    raise facts
                self._tell(facts, ended.ended_at)
            except Exception:
                self._failed()
                logger.exception("budgets.telemetry_failed task_id=%s", ended.task_id)

    def _counted(self) -> Iterator[tuple[EndedCall, dict[str, Any] | Exception]]:
        """Count the queued calls; yield each with its fields, or with the error."""
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
        """Count and report a block in a pool of this process, which is no delivery.

        Args:
            facts: The fields of its log record.
            reason: Why it was rejected; ``None`` if it was not.
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
        """Return a copy of the current statistics."""
        self.count_noted()
        with self._lock:
            return self._statistics.copy()

    def of_scope(self, path: str) -> Statistics:
        """Return the statistics of a request scope on this worker."""
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
