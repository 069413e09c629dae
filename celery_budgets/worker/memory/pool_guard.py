"""The second line for memory limits: the worker samples its pool processes once a second.

The watchdog in each process is the first line and samples ten times as often, but it is a Python
thread: a call in C code that keeps the interpreter lock stops it.

Physical limit: between two samples memory is not seen. In a second C code can touch 5 to 10 GB; a
limit that must never be exceeded needs a cgroup or RLIMIT_AS around the worker as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable
from time import monotonic, sleep
from typing import Any

import psutil

from celery_budgets.execution.flight.reader import FlightReader
from celery_budgets.execution.flight.record import Reason
from celery_budgets.execution.memory import rss as memory
from celery_budgets.units import format_size
from celery_budgets.worker.calls.roster import Roster

__all__ = ["PoolGuard"]

logger = logging.getLogger(__name__)

#: Longest wait for a process to stop, seconds; it usually takes microseconds.
_STOP_SECONDS = 0.05


class PoolGuard:
    """Kills pool processes whose call is above its hard memory limit.

    Args:
        pids: Returns the process ids of the pool.
        flights: Reads the flight record of each process.
        roster: The running calls, with their budgets.
        rss_of: Returns the RSS of a process, bytes; ``None`` if it has ended.
        take_stack: Makes a process write where its call is.
    """

    def __init__(
        self,
        pids: Callable[[], Iterable[int]],
        flights: FlightReader,
        roster: Roster,
        rss_of: Callable[[int], int | None] = memory.rss_of,
        take_stack: Callable[[int, str], None] | None = None,
    ) -> None:
        self._pids = pids
        self._flights = flights
        self._roster = roster
        self._take_stack = take_stack
        self._rss_of = rss_of

    def look(self) -> None:
        """Check every pool process once."""
        for pid in self._pids():
            request = self._request_of(pid)
            if request is None:
                continue
            rss, limit = self._rss_of(pid) or 0, request.hard_rss
            if rss > limit:
                logger.error(
                    "budgets.memory_limit task_id=%s lane=%s rss=%s limit=%s pid=%s by=worker",
                    request.id, request.lane.name, format_size(rss), format_size(limit), pid,
                )  # fmt: skip
                self._kill(pid, request.id, rss)

    def _request_of(self, pid: int, task_id: str | None = None) -> Any:
        """Return the call that runs in process *pid*; ``None`` if its body has ended."""
        flight = self._flights.current(pid)
        if flight is None or flight.ended:
            return None
        if task_id is not None and not flight.is_of(task_id):
            return None
        # Twins share their id: exclude those that run in another process.
        candidates = [
            request
            for request in list(self._roster.in_hand.values())
            if flight.is_of(request.id) and request.worker_pid in (None, pid)
        ]
        return min(candidates, key=lambda request: request.worker_pid is None, default=None)

    def _kill(self, pid: int, task_id: str, rss: int) -> None:
        """Kill the process if its call still runs.

        It is stopped first: a body that ended just before the kill would lose its result.
        """
        with contextlib.suppress(ProcessLookupError):
            if self._take_stack is not None:
                self._take_stack(pid, Reason.MEMORY_LIMIT.name.lower())
            os.kill(pid, signal.SIGSTOP)
            _wait_stopped(pid)
            if self._request_of(pid, task_id) is None:
                os.kill(pid, signal.SIGCONT)
                return
            self._flights.condemn(pid, Reason.MEMORY_LIMIT, rss)
            os.kill(pid, signal.SIGKILL)


def _wait_stopped(pid: int) -> None:
    deadline = monotonic() + _STOP_SECONDS
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        while process.status() != psutil.STATUS_STOPPED and monotonic() < deadline:
            sleep(0.001)
