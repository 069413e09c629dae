"""Reads the stacks of pool processes, and makes a process write its own.

Runs in the worker main process. See also: :mod:`celery_budgets.execution.stacks.writer`.
"""

from __future__ import annotations

import contextlib
import os
from time import monotonic, sleep, time
from typing import TYPE_CHECKING

from celery_budgets.execution.stacks.dump import heading, is_complete, stacks_in
from celery_budgets.execution.stacks.frames import outermost
from celery_budgets.execution.stacks.writer import MOST_FILE_BYTES, SIGNAL, file_of
from celery_budgets.model.stack import Stack

if TYPE_CHECKING:
    from celery_budgets.execution.flight.reader import FlightReader

__all__ = ["StackReader"]

#: Longest wait for a process to write its stack, seconds; it takes a fraction of a millisecond.
_ANSWER_SECONDS = 0.05
_POLL = 0.0005
#: The outermost frame of a process that is spawned (billiard.spawn.get_command_line).
_SPAWNED = "<string>", "<module>"


class StackReader:
    """Takes and reads the stacks of the calls in a worker's pool processes.

    Made in the thread that starts the pool.

    Args:
        flights: Reads their flight records.
    """

    def __init__(self, flights: FlightReader) -> None:
        self._flights = flights
        forked = outermost()
        self._outermost = {(forked.file, forked.function), _SPAWNED}

    def take(self, pid: int | None, moment: str) -> bool:
        """Make process *pid* write the stack of its call, which goes on running.

        Waits until it is written, at most 50 ms. Nothing happens where the process does not
        handle the signal, or is between two calls.

        Returns:
            Whether it is written to its end.
        """
        flight = self._flights.current(pid)
        if pid is None or SIGNAL is None or flight is None or flight.ended or not _is_heard(pid):
            return False
        with contextlib.suppress(OSError):
            descriptor = os.open(
                file_of(self._flights.folder, pid, "stack"), os.O_RDWR | os.O_APPEND
            )
            try:
                if os.fstat(descriptor).st_size > MOST_FILE_BYTES:
                    os.ftruncate(descriptor, 0)
                os.write(descriptor, heading(moment, flight.started_at, time()).encode())
                began = os.fstat(descriptor).st_size
                os.kill(pid, SIGNAL)
                return self._wait_written(descriptor, began)
            finally:
                os.close(descriptor)
        return False

    def _wait_written(self, descriptor: int, began: int) -> bool:
        """Wait until the stack behind offset *began* is complete."""
        deadline = monotonic() + _ANSWER_SECONDS
        while monotonic() < deadline:
            sleep(_POLL)
            size = os.fstat(descriptor).st_size
            written = os.pread(descriptor, size - began, began).decode()
            if is_complete(written, self._outermost):
                return True
        return False

    def of(self, pid: int | None, started_at: float) -> list[Stack]:
        """Return the stacks of a call in process *pid*, in the order of their taking.

        Args:
            pid: The process, which may be dead.
            started_at: The start of the call, as in its flight record.
        """
        if pid is None:
            return []
        told: list[Stack] = []
        for kind in ("stack", "notes"):
            with contextlib.suppress(OSError):
                path = file_of(self._flights.folder, pid, kind)
                with open(path, encoding="utf-8", errors="replace") as written:
                    told += stacks_in(written.read(), started_at)
        return sorted(told, key=lambda stack: stack.taken_at)


def _is_heard(pid: int) -> bool:
    """Return whether the main thread of process *pid* handles the signal, which else may end it."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            masks = {line[:6]: int(line.split()[1], 16) for line in status if line[:3] == b"Sig"
                     and line[:6] in (b"SigBlk", b"SigCgt")}  # fmt: skip
    except FileNotFoundError:
        return not os.path.isdir("/proc/self")  # macOS, where the signal is ignored by default
    except (OSError, ValueError):
        return False
    bit = 1 << (int(SIGNAL or 1) - 1)
    return bool(masks.get(b"SigCgt", 0) & bit) and not masks.get(b"SigBlk", 0) & bit
