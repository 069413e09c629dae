"""The ledger: the statistics of the blocks in this process.

In a worker without pool processes, the worker's tally counts them too, among its tasks. A pool
process on prefork, a web process and a script have only this ledger.

Covers: counting, log records, metrics of a process that is no worker.
Does not cover: tasks (:mod:`celery_budgets.worker.calls.tally`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from time import time
from typing import Any

from celery_budgets.model import failures
from celery_budgets.model.per_process import PerProcess
from celery_budgets.telemetry import logs, metrics
from celery_budgets.telemetry.metrics import Sample
from celery_budgets.telemetry.statistics import Statistics

__all__ = ["Ledger", "ledger_of"]

logger = logging.getLogger(__name__)


class Ledger:
    """Counts the blocks of one app in one process."""

    def __init__(self) -> None:
        self._statistics = Statistics()
        self._lock = threading.RLock()
        self._record: Callable[[str, Any, Any], None] | None = None
        self._started = False
        #: In a worker process: the function that counts and logs calls for the worker.
        self.worker: Callable[[Mapping[str, Any], str | None], None] | None = None

    def count(self, facts: Mapping[str, Any], reason: str | None = None) -> None:
        """Count a block that has ended, and log it; never raise.

        Args:
            facts: The fields of its log record (telemetry.logs.SCHEMA).
            reason: Why it was rejected; ``None`` if it was not.
        """
        try:
            with self._lock:
                self._statistics.add(facts)
                if reason is not None:
                    self._statistics.reject(facts["lane"], facts["task"], reason)
            if self.worker is not None:
                self.worker(facts, reason)
                return
            logs.call_ended(facts, time())
            if self._record is not None:
                self._record_values(self._record, facts)
        except Exception:
            failures.count()
            logger.exception("budgets.telemetry_failed task_id=%s", facts["task_id"])

    def snapshot(self) -> Statistics:
        """Return a copy of the current statistics."""
        with self._lock:
            return self._statistics.copy()

    def start(self, *, json_lines: bool) -> None:
        """Set up metrics and logs in a process that is no worker, once; never raise.

        Args:
            json_lines: Print the records of blocks as JSON lines.
        """
        with self._lock:
            if self._started:
                return
            self._started = True
        try:
            self._record = metrics.export_to_meter(lambda: list(self._samples()))
            if json_lines:
                logs.print_json_lines()
        except Exception:
            failures.count()
            logger.exception("budgets.telemetry_failed: blocks are reported only in part")

    def _record_values(
        self, record: Callable[[str, Any, Any], None], facts: Mapping[str, Any]
    ) -> None:
        labels = (facts["lane"], facts["task"])
        if facts["seconds"] is not None:
            record("call_duration_seconds", labels, facts["seconds"])
            record("queue_wait_seconds", labels, facts["wait_seconds"])
        if facts["rss_peak_bytes"] is not None:
            record("call_memory_peak_bytes", labels, facts["rss_peak_bytes"])

    def _samples(self) -> Iterator[Sample]:
        statistics = self.snapshot()
        for (lane, task), calls in statistics.calls.items():
            for outcome, count in calls.outcomes.items():
                yield Sample("calls", (lane, task, outcome), count)
        for lane, calls in statistics.lanes.items():
            yield Sample("time_limits", (lane, "soft"), calls.soft_limit_exceeded)
            yield Sample("time_limits", (lane, "hard"), calls.outcomes["hard_time_limit"])
            for reason, count in calls.rejections.items():
                yield Sample("rejections", (lane, reason), count)


_ledgers = PerProcess(Ledger)


def ledger_of(app: Any) -> Ledger:
    """Return the ledger of *app* in this process, created at its first use (also after a fork)."""
    return _ledgers.of(app)
