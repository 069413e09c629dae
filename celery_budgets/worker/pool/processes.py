"""Monitors the processes of a prefork pool: how many are up, and which fail to start.

Celery kills a process that does not report within ``worker_proc_alive_timeout`` (4 s) that it is
up, and starts another: if ``worker_process_init`` takes longer, for ever. It does so only with
replacement processes, so such a worker starts well and fails after its first kill.

Covers: counting them, and detecting missing ones. Does not cover: slow starts, which a process
logs itself (:mod:`celery_budgets.execution.slow_start`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from celery_budgets.units import format_duration

__all__ = ["PoolProcesses"]

logger = logging.getLogger(__name__)


class PoolProcesses:
    """Monitors the processes of one asynchronous pool, about once a second.

    Args:
        asynpool: A ``celery.concurrency.asynpool.AsynPool`` that has started.
        clock: Returns monotonic seconds.
    """

    def __init__(self, asynpool: Any, clock: Callable[[], float] = monotonic) -> None:
        self._pool = asynpool
        self._clock = clock
        #: By index in the pool, since when no process there has been up.
        self._away: dict[int, float] = {}
        self._pids: set[int] = set()
        #: Processes that were seen to start, including those at the worker's start.
        self.starts = 0
        self._told = False

    @property
    def alive_timeout(self) -> float:
        """Seconds within which a replacement process has to be up, or is killed."""
        return float(self._pool._proc_alive_timeout)

    @property
    def size(self) -> int:
        """How many processes there should be."""
        return int(self._pool._processes)

    def up(self) -> int:
        """Return how many take calls: those that have reported to Celery."""
        return sum(self._is_up(process) for process in list(self._pool._pool))

    def missing(self) -> int:
        """Return how many places have had no running process for longer than the timeout."""
        now = self._clock()
        return sum(now - since > self.alive_timeout for since in list(self._away.values()))

    def look(self) -> None:
        """Update which processes are up; log when some are missing, and when they are back."""
        now, processes = self._clock(), list(self._pool._pool)
        pids = {process.pid for process in processes}
        self.starts += len(pids - self._pids)
        self._pids = pids
        places = {process.index for process in processes}
        away = {process.index for process in processes if not self._is_up(process)}
        if len(processes) < self.size:
            away |= set(self._away) - places  # just killed, and not replaced yet
        self._away = {place: self._away.get(place, now) for place in away}
        self._tell()

    def to_json(self) -> dict[str, Any]:
        """Return the counts for the worker's report."""
        return {
            "size": self.size, "up": self.up(), "missing": self.missing(), "starts": self.starts,
            "alive_timeout": self.alive_timeout,
        }  # fmt: skip

    def _is_up(self, process: Any) -> bool:
        return self._pool._fileno_to_inq.get(process.inqW_fd) is process

    def _tell(self) -> None:
        missing = self.missing()
        if missing and not self._told:
            logger.error(
                "budgets.pool_processes_missing missing=%s of=%s worker_proc_alive_timeout=%s: a "
                "process that is not up by then is killed and replaced; raise "
                "worker_proc_alive_timeout above what worker_process_init takes",
                missing, self.size, format_duration(self.alive_timeout),
            )  # fmt: skip
        elif self._told and not missing:
            logger.info("budgets.pool_processes_back up=%s of=%s", self.up(), self.size)
        self._told = bool(missing)
