"""Ends the child processes of a call that the worker or the kernel has killed.

Children of a call that has returned or raised are left alone, as are those of tasks without a
budget and of tasks with ``children="leave"``.

Runs in the worker main process, prefork only. See also:
:mod:`celery_budgets.execution.child_tracking`, which records them in the process of the call.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Collection
from time import monotonic, time
from typing import Any

from celery_budgets.execution.children import Child, began_since, end, found_below
from celery_budgets.execution.flight.reader import FlightReader
from celery_budgets.execution.flight.record import Flight
from celery_budgets.execution.limits.stop_signals import STOP_SIGNALS

__all__ = ["Children"]

logger = logging.getLogger(__name__)

#: Seconds between SIGTERM and SIGKILL, as in billiard.
SECONDS_TO_END = 0.1


class Children:
    """Wraps the methods by which the pool ends a process, or detects that one has died.

    Args:
        task_pool: A ``celery.concurrency.prefork.TaskPool`` that has started.
        flights: Reads the records of the pool processes.
    """

    def __init__(self, task_pool: Any, flights: FlightReader) -> None:
        self._task_pool, self._pool = task_pool, task_pool._pool
        self._flights = flights
        #: By pid of a process that was signalled: its call, and the children of the call.
        self._noted: dict[int, tuple[Flight, set[Child]]] = {}

    @property
    def asynpool(self) -> Any:
        """The pool of processes."""
        return self._pool

    def attach(self) -> None:
        """Replace four methods, each by a wrapper.

        billiard.pool.TimeoutHandler._trywaitkill ends a process at the hard limit, TaskPool.
        terminate_job for a revocation, TaskPool.on_terminate all of them at a cold shutdown.
        Pool.process_flush_queues is called for each process that has been found dead, however
        it died, before its call is settled (billiard.pool.Pool._join_exited_workers).
        """
        handler = self._pool._timeout_handler
        self._celery_kill, handler._trywaitkill = handler._trywaitkill, self.kill
        self._celery_terminate_job = self._task_pool.terminate_job
        self._task_pool.terminate_job = self.terminate_job
        self._celery_terminate, self._task_pool.on_terminate = (
            self._task_pool.on_terminate, self.terminate,
        )  # fmt: skip
        self._celery_flush, self._pool.process_flush_queues = (
            self._pool.process_flush_queues, self.gone,
        )  # fmt: skip

    def kill(self, process: Any) -> None:
        """Kill a process at the hard limit, and the children of its call."""
        self._note(process.pid)
        self._flights.announce(process.pid)
        self._celery_kill(process)
        self._end(process.pid)

    def kill_all(self, processes: Collection[Any]) -> None:
        """Kill several processes, and the children of their calls, in the time that one takes.

        Mirrors billiard.pool.TimeoutHandler._trywaitkill, which waits for each of them.
        """
        for process in processes:
            self._note(process.pid)
            self._flights.announce(process.pid)
            _signal(process.pid, signal.SIGTERM)
        deadline = monotonic() + SECONDS_TO_END
        for process in processes:
            if process._popen.wait(timeout=max(0.0, deadline - monotonic())) is None:
                _signal(process.pid, signal.SIGKILL)
        for process in processes:
            self._end(process.pid)

    def terminate_job(self, pid: int, signum: int | None = None) -> None:
        """Send a process the signal of a revocation; its children are ended after its death."""
        self._note(pid)
        if signum is None or signum in STOP_SIGNALS:
            self._flights.announce(pid)
        self._celery_terminate_job(pid, signum)

    def terminate(self) -> None:
        """Kill all processes, and the children of their calls."""
        pids = [process.pid for process in getattr(self._pool, "_pool", ()) if process.pid]
        for pid in pids:
            self._note(pid)
            self._flights.announce(pid)
        try:
            self._celery_terminate()
        finally:
            for pid in pids:
                self._end(pid)

    def gone(self, process: Any) -> None:
        """End the children of the call of a dead process."""
        self._end(process.pid)
        self._celery_flush(process)

    def _note(self, pid: int) -> None:
        """Record the children of a process, which cannot be found once it is dead."""
        try:
            flight = self._flight(pid)
            if flight is not None:
                since = began_since(time() - flight.started_at)
                self._noted[pid] = flight, found_below(pid, since)
        except Exception:
            logger.exception("budgets.children_unknown pid=%s: they may live on", pid)

    def _flight(self, pid: int) -> Flight | None:
        """Return the flight record of the call that a process runs, or was running."""
        flight = self._flights.current(pid)
        over = flight is None or flight.ended or flight.leaves_children
        return None if over else flight

    def _end(self, pid: int) -> None:
        try:
            noted, children = self._noted.pop(pid, (None, set()))
            flight = self._flight(pid)
            if flight is None:
                return
            if noted is None or noted.started_at != flight.started_at:
                children = set()  # of an earlier call, which survived the signal
            count = end(children | self._flights.children(pid, flight))
        except Exception:
            logger.exception("budgets.children_unknown pid=%s: they may live on", pid)
        else:
            if count:
                logger.warning(
                    "budgets.children_ended task_id=%s pid=%s count=%s", flight.task_id, pid, count
                )


def _signal(pid: int, signum: signal.Signals) -> None:
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, signum)
        else:
            os.kill(pid, signum)
    except OSError:
        pass  # it has ended
