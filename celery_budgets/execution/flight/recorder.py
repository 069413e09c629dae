"""The flight recorder: writes records of running calls, which outlive their process.

Each pool process has one small file, named by its pid in a folder of the worker, that both the
process and the worker map into memory. It works under fork and spawn, and after SIGKILL. If calls
run in the worker process itself, the records stay in a table of that process.

Does not cover: their layout (:mod:`celery_budgets.execution.flight.record`), and how the worker
reads them (:mod:`celery_budgets.execution.flight.reader`).
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Collection
from itertools import islice

from celery_budgets.execution.call import Call
from celery_budgets.execution.children import Child
from celery_budgets.execution.flight.directory import map_file
from celery_budgets.execution.flight.record import (
    ANNOUNCED_OFFSET,
    CHILD,
    CHILDREN,
    CHILDREN_OFFSET,
    DEADLINES,
    DEADLINES_OFFSET,
    FAILURES,
    FAILURES_OFFSET,
    HAS_STATE_OFFSET,
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
    key_of,
    pack,
    pack_how_it_went,
    unpack,
    with_its_end,
)
from celery_budgets.model import failures
from celery_budgets.model.per_process import OncePerProcess

__all__ = ["ENVIRONMENT", "FlightRecorder", "reads", "recorder"]

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

    def has_state(self, call: Call) -> None:
        """Record that *call* has saved a state, or has found one."""
        if self._map is None:
            record = self._local.get((call.task_id, call.thread_id))
            if record is not None:
                before, after = record[:HAS_STATE_OFFSET], record[HAS_STATE_OFFSET + 1 :]
                self._keep(call, before + b"\1" + after)
        elif call is self._call:
            self._map[HAS_STATE_OFFSET] = True

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

    def is_announced(self) -> bool:
        """Return whether the worker has announced a signal that ends this process."""
        return self._map is not None and bool(self._map[ANNOUNCED_OFFSET])

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


#: Folder of the reader in this process: calls that run here need no file.
_own_folder: str | None = None

#: Returns the recorder of this process.
recorder = OncePerProcess(lambda: FlightRecorder(os.environ.get(ENVIRONMENT)))


def reads(folder: str) -> None:
    """Record that this process reads the records in *folder*: its own calls need no file there."""
    global _own_folder
    _own_folder = folder


def _forget_own_folder() -> None:
    global _own_folder
    _own_folder = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_own_folder)
