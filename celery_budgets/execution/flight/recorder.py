"""The flight recorder: writes and reads records of running calls, which outlive their process.

Each pool process has one small file, named by its pid in a folder of the worker, that both the
process and the worker map into memory. It works under fork and spawn, and after SIGKILL. If calls
run in the worker process itself, the records stay in a table of that process.

Covers: writing (pool process) and reading (worker main process) records.
Does not cover: their layout (:mod:`celery_budgets.execution.flight.record`), and what the worker
concludes from them (:mod:`celery_budgets.worker.calls.roster`).
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import mmap
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Collection
from itertools import islice

from celery_budgets.execution.call import Call
from celery_budgets.execution.children import Child
from celery_budgets.execution.flight.directory import lock, make, map_file, sweep
from celery_budgets.execution.flight.record import (
    CHILD,
    CHILDREN,
    CHILDREN_OFFSET,
    DEADLINES,
    DEADLINES_OFFSET,
    FAILURES,
    FAILURES_OFFSET,
    HOW_IT_WENT,
    MOST_CHILDREN,
    PEAK,
    PEAK_OFFSET,
    REASON_OFFSET,
    SIZE,
    TERMINATED,
    WAITS_OFFSET,
    Flight,
    Reason,
    flight_in,
    key_of,
    pack,
    pack_how_it_went,
    unpack,
    with_its_end,
)
from celery_budgets.model import failures
from celery_budgets.model.per_process import OncePerProcess

__all__ = ["ENVIRONMENT", "FlightReader", "FlightRecorder", "recorder"]

logger = logging.getLogger(__name__)

#: Environment variable with the folder of the records; set by the worker before its pool starts.
#: It is no setting, and so without the prefix of settings.
ENVIRONMENT = "_CELERY_BUDGETS_RECORDER"

#: Most records of calls in this process that are kept until they are read.
_LOCAL_RECORDS = 10_000


class FlightRecorder:
    """Records the calls of this process: in its own file, or in a table of this process."""

    def __init__(self, folder: str | None) -> None:
        self._map: mmap.mmap | None = None
        #: The recorded call; blocks inside it are not recorded.
        self._call: Call | None = None
        #: Records by task id and thread: twins with one idempotency key share their id.
        self._local: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        #: Ids of the calls that wait for a result of their own lane, if there is no file.
        self.waiting: set[str] = set()
        if folder and folder != _own_folder:
            try:
                self._map = map_file(os.path.join(folder, str(os.getpid())), create=True)
            except OSError as exc:
                logger.warning(
                    "budgets.no_flight_record: a kill of this process says less: %s", exc
                )
            failures.listen(self._failed)

    def begin(self, call: Call, trace_id: bytes = b"", span_id: bytes = b"") -> None:
        """Record that *call* runs, and its span."""
        self._call = call
        record = pack(call, trace_id, span_id)
        if self._map is not None:
            self._map[:SIZE] = record
        else:
            self._keep(call, record)

    def peak(self, call: Call) -> None:
        """Record the call's highest sample of RSS so far."""
        if self._map is not None and call is self._call:
            PEAK.pack_into(self._map, PEAK_OFFSET, call.rss_peak)

    def children(self, call: Call, children: Collection[Child]) -> None:
        """Record the child processes of *call*, as many as fit."""
        if self._map is None or call is not self._call:
            return
        offset, count = CHILDREN_OFFSET + CHILDREN.size, min(len(children), MOST_CHILDREN)
        # A partly written entry matches no process: pid and start have to match together.
        for child in islice(children, count):
            CHILD.pack_into(self._map, offset, *child)
            offset += CHILD.size
        CHILDREN.pack_into(self._map, CHILDREN_OFFSET, call.started_at, count)

    def deadlines(self, call: Call) -> None:
        """Record that the call's limits have moved."""
        if self._map is not None and call is self._call:
            DEADLINES.pack_into(self._map, DEADLINES_OFFSET, call.soft_at, call.hard_at)

    def waits(self, call: Call, *, waits: bool) -> None:
        """Record that *call* starts or stops waiting for a result of its own lane."""
        if self._map is None:
            (self.waiting.add if waits else self.waiting.discard)(call.task_id)
        elif call is self._call:
            self._map[WAITS_OFFSET] = waits

    def killed(self, call: Call, reason: Reason) -> None:
        """Record why this process is about to end itself during *call*."""
        # A watchdog may be late: by then the record is that of the next call.
        if self._map is not None and call is self._call:
            self._map[REASON_OFFSET] = reason

    def is_terminated(self, call: Call) -> bool:
        """Return whether the worker has sent a signal to terminate *call*; once per signal."""
        if self._map is None or self._map[TERMINATED] != key_of(call.task_id):
            return False
        self._map[TERMINATED] = key_of("")
        return True

    def end(self, call: Call) -> None:
        """Record the usage of *call* at its end; its span stays recorded."""
        former, self._call = self._call, None
        if self._map is None:
            record = self._local.pop((call.task_id, call.thread_id), None)
            self._keep(call, with_its_end(record or pack(call), call))
        elif former is call:
            self._map[HOW_IT_WENT] = pack_how_it_went(call)
        else:
            self._map[:SIZE] = with_its_end(pack(call), call)

    def _keep(self, call: Call, record: bytes) -> None:
        self._local[call.task_id, call.thread_id] = record
        if len(self._local) > _LOCAL_RECORDS:
            self._local.popitem(last=False)

    def _failed(self) -> None:
        if self._map is not None:
            before = FAILURES.unpack_from(self._map, FAILURES_OFFSET)[0]
            FAILURES.pack_into(self._map, FAILURES_OFFSET, before + 1)

    def take(self, task_id: str) -> Flight | None:
        """Return and remove the record of a call that ran in this process.

        Prefers the record of this thread, in which Celery reports the end of the call; that of
        another thread if the call was abandoned.
        """
        record = self._local.pop((task_id, threading.get_ident()), None)
        if record is None:
            keys = [key for key in self._local.copy() if key[0] == task_id]
            record = self._local.pop(keys[0], None) if keys else None
        return unpack(record) if record else None


class FlightReader:
    """Reads the records of a worker's pool processes; lives in the worker main process.

    Args:
        folder: Where the records are kept; a new one by default.
    """

    def __init__(self, folder: str | None = None) -> None:
        global _own_folder
        sweep()
        self.folder, self._lock = (folder, lock(folder)) if folder else make()
        # Pool processes exit by os._exit, which skips atexit.
        atexit.register(self.close)
        self._owner = os.getpid()
        self._maps: dict[int, mmap.mmap] = {}
        self._failures_of_gone = 0
        os.environ[ENVIRONMENT] = _own_folder = self.folder

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

    def forget(self, pid: int) -> None:
        """Remove the record of a process that has ended, so that its pid can be reused."""
        self.current(pid)
        record = self._maps.pop(pid, None)
        if record is not None:
            self._failures_of_gone += FAILURES.unpack_from(record, FAILURES_OFFSET)[0]
            record.close()
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.folder, str(pid)))

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
        for pid in list(self._maps):
            self.forget(pid)
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = None


#: Folder of the reader in this process: calls that run here need no file.
_own_folder: str | None = None

#: Returns the recorder of this process.
recorder = OncePerProcess(lambda: FlightRecorder(os.environ.get(ENVIRONMENT)))


def _forget_own_folder() -> None:
    global _own_folder
    _own_folder = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_own_folder)
