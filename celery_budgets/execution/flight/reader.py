"""Reads the flight records of a worker's pool processes.

Covers: reading them, and what the worker writes into them: why it kills a process, which call it
terminates, and that a signal is meant for the process.
Does not cover: what the worker concludes (:mod:`celery_budgets.worker.calls.roster`).

Runs in the worker main process. See also: :mod:`celery_budgets.execution.flight.recorder`, which
writes them.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
import shutil

from celery_budgets.execution.children import Child
from celery_budgets.execution.flight.directory import lock, make, map_file, sweep
from celery_budgets.execution.flight.record import (
    ANNOUNCED_OFFSET,
    CHILD,
    CHILDREN,
    CHILDREN_OFFSET,
    FAILURES,
    FAILURES_OFFSET,
    MOST_CHILDREN,
    PEAK,
    PEAK_OFFSET,
    REASON_OFFSET,
    SIZE,
    TERMINATED,
    Flight,
    Reason,
    flight_in,
    key_of,
    unpack,
)
from celery_budgets.execution.flight.recorder import ENVIRONMENT, reads

__all__ = ["FlightReader"]


class FlightReader:
    """Reads the records of a worker's pool processes; lives in the worker main process.

    Args:
        folder: Where the records are kept; a new one by default.
    """

    def __init__(self, folder: str | None = None) -> None:
        sweep()
        self.folder, self._lock = (folder, lock(folder)) if folder else make()
        # Pool processes exit by os._exit, which skips atexit.
        atexit.register(self.close)
        self._owner = os.getpid()
        self._maps: dict[int, mmap.mmap] = {}
        self._failures_of_gone = 0
        os.environ[ENVIRONMENT] = self.folder
        reads(self.folder)

    def read(self, pid: int | None, task_id: str) -> Flight | None:
        """Return the record of *task_id* in process *pid*; ``None`` if it is of another call."""
        return flight_in(self._map_of(pid), task_id)

    def copy(self, pid: int | None) -> bytes | None:
        """Return the newest record of process *pid* in bytes, for :func:`flight_in`."""
        record = self._map_of(pid)
        return record[:SIZE] if record is not None else None

    def current(self, pid: int | None) -> Flight | None:
        """Return the newest record of process *pid*, if there is one."""
        record = self._map_of(pid)
        return unpack(record) if record is not None else None

    def children(self, pid: int, flight: Flight) -> set[Child]:
        """Return the last recorded child processes of the call of *flight*.

        Args:
            pid: The process of the call.
            flight: Its record; empty if the recorded children are those of another call.
        """
        record = self._map_of(pid)
        if record is None:
            return set()
        started_at, count = CHILDREN.unpack_from(record, CHILDREN_OFFSET)
        if started_at != flight.started_at:
            return set()
        first = CHILDREN_OFFSET + CHILDREN.size
        offsets = (first + number * CHILD.size for number in range(min(count, MOST_CHILDREN)))
        return {Child(*CHILD.unpack_from(record, offset)) for offset in offsets}

    def _map_of(self, pid: int | None) -> mmap.mmap | None:
        record = self._maps.get(pid) if pid is not None else None
        if record is None and pid is not None:
            try:
                record = map_file(os.path.join(self.folder, str(pid)), create=False)
            except (OSError, ValueError):
                return None
            self._maps[pid] = record
        return record

    def condemn(self, pid: int, reason: Reason, rss: int) -> None:
        """Record for process *pid*, which is stopped, why it is killed; *rss* in bytes."""
        record = self._maps[pid]
        record[REASON_OFFSET] = reason
        PEAK.pack_into(record, PEAK_OFFSET, max(rss, PEAK.unpack_from(record, PEAK_OFFSET)[0]))

    def terminate(self, pid: int | None, task_id: str) -> None:
        """Record in the file of process *pid* that its next signal terminates *task_id*."""
        record = self._map_of(pid)
        if record is not None:
            record[TERMINATED] = key_of(task_id)

    def announce(self, pid: int, *, ends: bool = True) -> None:
        """Record in the file of process *pid* that a signal to end is meant for it, or no more."""
        record = self._map_of(pid)
        if record is not None:
            record[ANNOUNCED_OFFSET] = ends

    def forget(self, pid: int) -> None:
        """Remove the record of a process that has ended, so that its pid can be reused."""
        self.current(pid)
        record = self._maps.pop(pid, None)
        if record is not None:
            self._failures_of_gone += FAILURES.unpack_from(record, FAILURES_OFFSET)[0]
            record.close()
        for name in (f"{pid}", f"{pid}.stack", f"{pid}.notes"):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.folder, name))

    def failures(self) -> int:
        """Return the failures of telemetry in all pool processes, including ended ones."""
        for pid in self.pids():
            self.current(pid)
        living = (FAILURES.unpack_from(record, FAILURES_OFFSET)[0] for record in
                  list(self._maps.values()))  # fmt: skip
        return int(self._failures_of_gone + sum(living))

    def pids(self) -> list[int]:
        """Return the processes that have a record."""
        try:
            return [int(name) for name in os.listdir(self.folder) if name.isdigit()]
        except OSError:
            return []

    def close(self) -> None:
        """Remove all records; only in the process that created the folder."""
        if os.getpid() != self._owner or self._lock is None:
            return
        for pid in self.pids():
            self.announce(pid)  # billiard ends what is left of the pool, and waits for it
            self.forget(pid)
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = None
