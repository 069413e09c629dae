"""Reads the frames of a running body in its own process.

Covers: any thread or greenlet, and the tasks that an asyncio event loop in it waits for.
See also: :mod:`celery_budgets.execution.stacks.dump`, for the stacks that faulthandler writes.

Runs in the process that runs the call.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from traceback import walk_stack
from types import FrameType
from typing import Any

from celery_budgets.model.stack import Frame, capped

__all__ = ["MARKER", "below_body", "frames_of", "frames_of_others", "is_own", "outermost"]

_EXECUTION = os.path.dirname(os.path.dirname(__file__))
_OWN = os.path.dirname(_EXECUTION) + os.sep
_HANDLERS = os.path.join(_EXECUTION, "limits") + os.sep
#: Below the frame of this function a body runs (celery_budgets.execution.body.run_body). It is not
#: imported, because what it imports notes stacks.
MARKER = os.path.join(_EXECUTION, "body.py"), "run_body"
#: Most frames and waits that are followed from one task to the next.
_MOST_STEPS = 100


def below_body(frames: Sequence[Frame], *, cut_off: bool = False) -> tuple[Frame, ...]:
    """Return those of *frames* (innermost last) that are the body's own, as many as are kept.

    Args:
        frames: All frames of a thread.
        cut_off: Whether the outermost are missing; then all are the body's.
    """
    first = next((at for at, (file, _, name) in enumerate(frames) if (file, name) == MARKER), None)
    if first is None:
        return capped(frames) if cut_off else ()
    own = first + 1
    while own < len(frames) and is_own(frames[own]):
        own += 1
    # A handler of a signal that has interrupted the body, at that moment: not where the body is.
    handler = (at for at in range(own, len(frames)) if frames[at].file.startswith(_HANDLERS))
    return capped(frames[own : next(handler, len(frames))])


def is_own(frame: Frame) -> bool:
    """Return whether *frame* is of this package."""
    return frame.file.startswith(_OWN)


def frames_of(innermost: FrameType | None) -> tuple[Frame, ...]:
    """Return the frames of the body in the thread or greenlet that is in *innermost*.

    Those of an event loop that waits are replaced by the frames of the task that it waits for.
    """
    live = list(walk_stack(innermost)) if innermost is not None else []
    live.reverse()
    told = [_frame(frame, line) for frame, line in live]
    own = below_body(told)
    return capped([*own, *_awaited(live)]) if own else own


def outermost() -> Frame:
    """Return the outermost frame of this thread: also that of a process which it forks."""
    *_, (frame, line) = walk_stack(sys._getframe())
    return _frame(frame, line)


def frames_of_others(thread_id: int) -> tuple[tuple[Frame, ...], ...]:
    """Return the frames of the threads besides *thread_id* and those of this package."""
    threads = []
    for other, innermost in sys._current_frames().items():
        frames = [_frame(frame, line) for frame, line in walk_stack(innermost)][::-1]
        if other != thread_id and not any(is_own(frame) for frame in frames):
            threads.append(capped(frames))
    return tuple(threads)


def _frame(frame: FrameType, line: int | None) -> Frame:
    code = frame.f_code
    return Frame(code.co_filename, line or 0, code.co_name)


def _awaited(live: Sequence[tuple[FrameType, int | None]]) -> Iterator[Frame]:
    """Yield the frames of the asyncio task that the thread of *live* waits for in a selector."""
    if "asyncio" not in sys.modules or not live or live[-1][0].f_code.co_name != "select":
        return
    for frame, _ in reversed(live):
        if frame.f_code.co_name == "run_until_complete":
            yield from _chain(frame.f_locals.get("future"))
            return


def _chain(waited_for: Any) -> Iterator[Frame]:
    """Yield the frames of a task, then of what it waits for, innermost last."""
    awaited: Any = waited_for
    for _ in range(_MOST_STEPS):
        children = getattr(awaited, "_children", None)
        if children:  # asyncio.gather
            awaited = next((child for child in children if not child.done()), None)
        coroutine = awaited.get_coro() if hasattr(awaited, "get_coro") else awaited
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            yield _frame(frame, frame.f_lineno)
        following = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
        if following is None or not hasattr(following, "cr_frame"):
            # The end of this task's coroutines, which may wait for another task.
            following = getattr(awaited, "_fut_waiter", None) if awaited is not None else None
        if following is None:
            return
        awaited = following
