"""The black box: where killed calls were, and where running ones are.

Covers: having stacks taken, reading them, and showing them in results.
Does not cover: how they are taken (:mod:`celery_budgets.execution.stacks`).

Lives in the worker main process.
"""

from __future__ import annotations

import re
from copy import copy
from time import time
from traceback import format_exception_only
from typing import TYPE_CHECKING, Any

from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError

from celery_budgets.errors import MemoryLimitExceeded
from celery_budgets.execution.limits.watchdog import watchdog
from celery_budgets.execution.safely import guarded
from celery_budgets.execution.stacks.frames import below_body, frames_of
from celery_budgets.execution.stacks.reader import StackReader
from celery_budgets.execution.stacks.writer import stack_writer
from celery_budgets.model.stack import Frame, Stack

if TYPE_CHECKING:
    from celery_budgets.execution.flight.reader import FlightReader
    from celery_budgets.execution.flight.record import Flight
    from celery_budgets.worker.delivery import Delivery

__all__ = ["ASKED", "BlackBox", "end_and_warning", "shown", "traceback_of"]

#: The moment of a stack that somebody has asked for.
ASKED = "asked"
_SOFT = "soft_time_limit"
_HEAD = "Traceback (most recent call last):"
_FRAME = re.compile(r'^  File "(.*)", line (\d+), in (.*)$', re.MULTILINE)


class BlackBox:
    """The stacks of the calls of one worker.

    Args:
        flights: Reads the records of pool processes; ``None``: calls run in this process.
        enabled: Whether stacks are taken.
    """

    def __init__(self, flights: FlightReader | None, *, enabled: bool) -> None:
        self._flights, self._enabled = flights, enabled
        self._reader = StackReader(flights) if flights is not None and enabled else None

    def take(self, pid: int | None, moment: str) -> None:
        """Have pool process *pid* write the stack of its call; it takes less than 50 ms."""
        if self._reader is not None:
            guarded(self._reader.take, pid, moment)

    def now(self, request: Delivery) -> Stack | None:
        """Return where the body of a running call is; it goes on running.

        In a pool process it takes less than 50 ms. ``None`` if it has ended, or stacks are off.
        """
        found: Stack | None = guarded(self._now, request) if self._enabled else None
        return found

    def _now(self, request: Delivery) -> Stack | None:
        began = time()
        if self._flights is None:
            frames = frames_of(watchdog().frame_of(request.id))
            return Stack(frames, ASKED, began) if frames else None
        self.take(request.worker_pid, ASKED)
        stacks = [stack for stack in self.of(request) if stack.taken_at >= began]
        return stacks[-1] if stacks else None

    def of(self, request: Delivery, flight: Flight | None = None) -> tuple[Stack, ...]:
        """Return the stacks of a call that has ended, in the order of their taking.

        Args:
            request: Its delivery.
            flight: Its flight record, if it has been read already.
        """
        found: tuple[Stack, ...] = guarded(self._read, request, flight) or ()
        return found

    def _read(self, request: Delivery, flight: Flight | None) -> tuple[Stack, ...]:
        if self._flights is None:
            return stack_writer().take(request.id)
        if self._reader is None:
            return ()
        flight = flight or self._flights.read(request.worker_pid, request.id)
        if flight is None:
            return ()
        return tuple(self._reader.of(request.worker_pid, flight.started_at))


def end_and_warning(stacks: tuple[Stack, ...]) -> tuple[Stack | None, Stack | None]:
    """Return where a call was at its end, and where it was told of its soft limit before that.

    An event loop that waits looks the same whichever of its tasks hangs. Shortly before, the
    watchdog may have noted the task too; that stack begins with the same frames.
    """
    if not stacks:
        return None, None
    last = stacks[-1]
    for earlier in stacks[:-1]:
        if earlier.moment == last.moment and earlier.frames[: len(last.frames)] == last.frames:
            last = last._replace(frames=earlier.frames)
        if earlier.moment == last.moment and earlier.others:
            last = last._replace(others=earlier.others)
    told = next((stack for stack in stacks if stack.moment == _SOFT), None)
    return last, told if told is not last else None


def traceback_of(stacks: tuple[Stack, ...], exc: BaseException) -> str | None:
    """Return what a traceback of *exc* would be, had it been raised where the call was."""
    text: str | None = guarded(_traceback_of, stacks, exc)
    return text


def _traceback_of(stacks: tuple[Stack, ...], exc: BaseException) -> str | None:
    last, told = end_and_warning(stacks)
    if last is None:
        return None
    lines = [_HEAD, *last.lines(), "".join(format_exception_only(exc)).rstrip()]
    for frames in last.others:
        lines += ["", "Another thread of its process:", *Stack(frames, last.moment).lines()]
    if told is not None:
        lines = ["At its soft time limit it was here:", *told.lines(), "", "It went on, until:",
                 *lines]  # fmt: skip
    return "\n".join(lines) + "\n"


def shown(request: Any, exc_info: Any, exc: BaseException) -> Any:
    """Note in *request* where its call raised *exc*, or was when its process was lost.

    Returns:
        *exc_info*, with the last known stack of a lost process as its traceback.
    """
    return guarded(_shown, request, exc_info, exc) or exc_info


def _shown(request: Any, exc_info: Any, exc: BaseException) -> Any:
    if isinstance(exc, SoftTimeLimitExceeded | MemoryLimitExceeded):
        frames = _raised(str(exc_info.traceback))
        request.stacks = (Stack(frames, _SOFT),) if frames else ()
    elif isinstance(exc, TimeLimitExceeded):  # on a pool that could only interrupt it
        frames = _raised(str(exc_info.traceback))
        raised = (Stack(frames, "hard_time_limit"),) if frames else ()
        request.stacks = request.runtime.black_box.of(request) or raised
    elif isinstance(exc, WorkerLostError):
        request.stacks = request.runtime.black_box.of(request)
        text = traceback_of(request.stacks, exc)
        if text is not None:
            head = f"Its last known stack, of the moment {request.stacks[-1].moment}:"
            exc_info = copy(exc_info)
            vars(exc_info).update(traceback=f"{head}\n{text}")
    return exc_info


def _raised(traceback: str) -> tuple[Frame, ...]:
    """Return the frames of the body in a traceback as text: of its last exception."""
    last = traceback.rpartition(_HEAD)[2]
    found = _FRAME.findall(last)
    return below_body([Frame(file, int(line), function) for file, line, function in found])
