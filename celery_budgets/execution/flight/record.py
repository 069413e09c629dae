"""The binary layout of a flight record, with functions to pack and unpack it.

Written in the process that runs the call, read in the worker main process. See also:
:mod:`celery_budgets.execution.flight.recorder`, which manages the records.
"""

from __future__ import annotations

import mmap
import struct
from enum import IntEnum
from typing import NamedTuple

from celery_budgets.execution.call import Call

__all__ = [
    "ANNOUNCED_OFFSET", "CHILD", "CHILDREN", "CHILDREN_OFFSET", "DEADLINES", "DEADLINES_OFFSET",
    "FAILURES", "FAILURES_OFFSET", "HAS_STATE_OFFSET", "HOW_IT_WENT", "MOST_CHILDREN", "PEAK",
    "PEAK_OFFSET", "REASON_OFFSET", "SIZE", "TERMINATED", "WAITS_OFFSET", "Flight", "Reason",
    "flight_in", "has_state", "key_of", "pack", "pack_how_it_went", "unpack", "with_its_end",
]  # fmt: skip

_TASK_ID_BYTES = 128
#: State, reason, soft exceeded, twin, waits, children left alone, has saved a state.
_FLAGS = "BBBBBBBx"
#: The fields that change while the call runs: the flags, start (epoch), soft and hard deadline
#: (monotonic), wall seconds, RSS before, peak and after (bytes).
_CHANGING = f"{_FLAGS}4d3Q"
#: The whole record: the task id, the changing fields, trace id, span id.
_LAYOUT = struct.Struct(f"<{_TASK_ID_BYTES}s{_CHANGING}16s8s")
_CHANGES = struct.Struct(f"<{_CHANGING}")
SIZE = _LAYOUT.size
HOW_IT_WENT = slice(_TASK_ID_BYTES, _TASK_ID_BYTES + _CHANGES.size)
REASON_OFFSET = struct.calcsize(f"<{_TASK_ID_BYTES}sB")
WAITS_OFFSET = struct.calcsize(f"<{_TASK_ID_BYTES}sBBBB")
HAS_STATE_OFFSET = struct.calcsize(f"<{_TASK_ID_BYTES}sBBBBBB")
PEAK = struct.Struct("<Q")
PEAK_OFFSET = struct.calcsize(f"<{_TASK_ID_BYTES}s{_FLAGS}4d1Q")
DEADLINES = struct.Struct("<2d")
DEADLINES_OFFSET = struct.calcsize(f"<{_TASK_ID_BYTES}s{_FLAGS}1d")
#: After the record: the failures of telemetry in the process.
FAILURES = struct.Struct("<Q")
FAILURES_OFFSET = 512
#: After the failures: the children of the call. The call's start (as in its record) and their
#: number; then the pid and the start of each.
CHILDREN = struct.Struct("<dQ")
CHILD = struct.Struct("<QQ")
CHILDREN_OFFSET = 2048
MOST_CHILDREN = 120
#: Id of the call that the worker terminates, padded with zeros; written by the worker.
TERMINATED = slice(1024, 1024 + _TASK_ID_BYTES)
#: Whether the worker is about to signal the process to end; written by the worker.
ANNOUNCED_OFFSET = 1024 + _TASK_ID_BYTES

_IDLE, _RUNNING, _ENDED = range(3)


class Reason(IntEnum):
    """Why a process ended itself during a call."""

    NONE = 0
    HARD_TIME_LIMIT = 1
    MEMORY_LIMIT = 2


_REASONS = tuple(Reason)


class Flight(NamedTuple):
    """A flight record: the state of a call as its process has last written it."""

    #: Id of the task in UTF-8, truncated if it is long.
    task_key: bytes
    ended: bool
    reason: Reason
    soft_exceeded: bool
    #: Seconds since the epoch.
    started_at: float
    #: Monotonic instants, the same clock in all processes of a host.
    soft_deadline: float
    hard_deadline: float
    wall_seconds: float
    rss_before_bytes: int
    rss_peak_bytes: int
    rss_after_bytes: int
    trace_id: bytes
    span_id: bytes
    #: Whether the body was skipped: a twin of the call runs or has run.
    twin: bool = False
    #: Whether it waits for a result of its own lane.
    waits: bool = False
    #: Whether its child processes are left alone.
    leaves_children: bool = False
    #: Whether this attempt or an earlier one has saved a state.
    has_state: bool = False

    @property
    def task_id(self) -> str:
        """Id of the task, truncated if it is long."""
        return self.task_key.decode(errors="replace")

    def is_of(self, task_id: str) -> bool:
        """Return whether the record is of *task_id*, in bytes: truncation may split a character."""
        return self.task_key == key_of(task_id).rstrip(b"\0")


def key_of(task_id: str) -> bytes:
    """Return *task_id* as in a record: in UTF-8, truncated if it is long."""
    return task_id.encode()[:_TASK_ID_BYTES].ljust(_TASK_ID_BYTES, b"\0")


def pack(call: Call, trace_id: bytes = b"", span_id: bytes = b"") -> bytes:
    """Return the record of the running *call*."""
    return _LAYOUT.pack(
        key_of(call.task_id), _RUNNING, 0,
        call.soft_exceeded, call.twin, False, call.budget.children == "leave", call.has_state,
        call.started_at, call.soft_at, call.hard_at, call.wall_seconds,
        call.rss_before, call.rss_peak, call.rss_after, trace_id, span_id,
    )  # fmt: skip


def pack_how_it_went(call: Call) -> bytes:
    """Return the changing fields of the record of *call*, after its end."""
    return _CHANGES.pack(
        _ENDED, 0, call.soft_exceeded, call.twin, False, False, call.has_state,
        call.started_at, call.soft_at, call.hard_at, call.wall_seconds,
        call.rss_before, call.rss_peak, call.rss_after,
    )  # fmt: skip


def with_its_end(record: bytes, call: Call) -> bytes:
    """Return *record* updated with the end of *call*."""
    return record[: HOW_IT_WENT.start] + pack_how_it_went(call) + record[HOW_IT_WENT.stop :]


def unpack(data: bytes | mmap.mmap) -> Flight | None:
    """Return the record in *data*; ``None`` if it is empty."""
    (
        task_id, state, reason, soft_exceeded, twin, waits, leaves, saved, started_at, soft,
        hard, wall, before, peak, after, trace_id, span_id,
    ) = _LAYOUT.unpack_from(data)  # fmt: skip
    if state == _IDLE:
        return None
    return Flight(
        task_id.rstrip(b"\0"), state == _ENDED, _REASONS[reason],
        bool(soft_exceeded), started_at, soft, hard, wall, before, peak, after, trace_id, span_id,
        bool(twin), bool(waits), bool(leaves), bool(saved),
    )  # fmt: skip


def flight_in(record: Flight | bytes | mmap.mmap | None, task_id: str) -> Flight | None:
    """Return *record* if it is of *task_id*; ``None`` if it is of another call, or empty.

    A record that is unpacked already is returned unchanged.
    """
    if record is None or isinstance(record, Flight):
        return record
    flight = unpack(record)
    return flight if flight is not None and flight.is_of(task_id) else None


def has_state(record: Flight | bytes | None, task_id: str) -> bool:
    """Return whether *record* is of *task_id*, and says that a state was saved."""
    if isinstance(record, bytes) and not record[HAS_STATE_OFFSET]:
        return False  # as for most calls, without unpacking it
    flight = flight_in(record, task_id)
    return flight is not None and flight.has_state
