"""How a block under a budget is interrupted: code in a thread, and code in a coroutine.

A block is a part of whatever runs it, and may stand in a call that has limits of its own. Where
both are due at once, the outer limit is the one that interrupts: it ends the block as well, and
the code between both is interrupted once, not twice.

See also: :mod:`celery_budgets.execution.limits.interrupts`, for tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
from time import monotonic
from typing import ClassVar

from celery.exceptions import SoftTimeLimitExceeded

from celery_budgets.errors import MemoryLimitExceeded
from celery_budgets.execution.call import Call, HardLimitReached
from celery_budgets.execution.limits.async_exception import is_of, raise_in, take_back
from celery_budgets.execution.limits.interrupts import GreenletInterrupt, Interrupt

__all__ = [
    "FROM_OUTSIDE", "BlockInterrupt", "CoroutineInterrupt", "GreenletBlockInterrupt",
    "ThreadBlockInterrupt", "in_coroutine", "interrupt_here",
]  # fmt: skip


_COROUTINE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
#: What may be raised between any two steps.
FROM_OUTSIDE = (
    SoftTimeLimitExceeded, HardLimitReached, MemoryLimitExceeded, KeyboardInterrupt, SystemExit,
)  # fmt: skip


def in_coroutine() -> bool:
    """Return whether a coroutine calls the caller: itself, or by a stack of :mod:`contextlib`."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename == contextlib.__file__ and frame.f_back is not None:
        frame = frame.f_back
    return bool(frame.f_code.co_flags & _COROUTINE)


def interrupt_here() -> BlockInterrupt:
    """Return how a block in this thread, or greenlet, is interrupted."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return GreenletBlockInterrupt()
    return ThreadBlockInterrupt()


class BlockInterrupt(Interrupt):
    """What blocks have in common."""

    judges_late = True

    def sent(self, call: Call, error: BaseException) -> bool:
        """Return whether *error* is an interrupt of *call*, and not of somebody else."""
        return False


class ThreadBlockInterrupt(BlockInterrupt):
    """A block in a thread: an asynchronous exception, at the hard limit again and again."""

    enforces: ClassVar = {
        "soft": "in Python code; a blocking call notices when it returns",
        "hard": "in Python code; a thread cannot be killed",
        "memory": "measured over the process",
    }

    def __init__(self) -> None:
        # Entered again where the garbage collector, inside of it, ends a generator with a block.
        self._lock = threading.RLock()

    def leave(self, call: Call) -> None:
        """Close the block, then take back an exception that has not arrived yet."""
        with self._lock:
            call.open = False
        take_back(call)

    def soft(self, call: Call) -> None:
        """Raise in the thread as soon as it runs Python code."""
        with self._lock:
            if call.open and not _left_to_outer(call):
                raise_in(call, SoftTimeLimitExceeded, self.soft)

    def hard(self, call: Call) -> None:
        """Raise what ``except Exception`` does not catch, until the block is left."""
        with self._lock:
            if call.open and not _left_to_outer(call, hard=True):
                raise_in(call, HardLimitReached, self.hard)

    def sent(self, call: Call, error: BaseException) -> bool:
        """Return whether *error* is an interrupt of *call*, and not of somebody else."""
        return isinstance(error, SoftTimeLimitExceeded | HardLimitReached) and is_of(call, error)


class GreenletBlockInterrupt(GreenletInterrupt, BlockInterrupt):
    """A block in a greenlet (gevent): throws into it, at the hard limit again and again."""

    enforces: ClassVar = {
        "soft": "where the block yields",
        "hard": "where the block yields",
        "memory": "measured over the process",
    }

    def soft(self, call: Call) -> None:
        """Throw into the greenlet from the hub."""
        if not _left_to_outer(call):
            super().soft(call)

    def hard(self, call: Call) -> None:
        """Throw what ``except Exception`` does not catch."""
        if not _left_to_outer(call, hard=True):
            call.hard_sent = True
            self._throw(call, HardLimitReached())


class CoroutineInterrupt(BlockInterrupt):
    """A block in a coroutine: its task is cancelled, which the edge of the block translates.

    As asyncio.timeout does it. A coroutine notices where it awaits something, and only if its
    event loop runs.
    """

    enforces: ClassVar = {
        "soft": "where the coroutine awaits",
        "hard": "where the coroutine awaits",
        "memory": "measured over the process",
    }

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("async with budgets.call(...): it has to run in an asyncio task")
        self.task = task
        self._cancelled_before = task.cancelling()
        #: How often the task was cancelled from here.
        self._cancelled = 0

    def leave(self, call: Call) -> None:
        """Close the block: what the loop has yet to do for it does nothing any more."""
        call.open = False

    def soft(self, call: Call) -> None:
        """Cancel the task once."""
        self._schedule(call, hard=False)

    def hard(self, call: Call) -> None:
        """Cancel the task, again and again while the block is open."""
        self._schedule(call, hard=True)

    def _schedule(self, call: Call, *, hard: bool) -> None:
        if call.open and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel, call, hard)

    def _cancel(self, call: Call, hard: bool) -> None:
        if not call.open or _left_to_outer(call, hard=hard) or (call.soft_sent and not hard):
            return
        if hard:
            call.hard_sent = True
        else:
            call.soft_sent = True
        self._cancelled += 1
        self.task.cancel()

    def settle(self, error: BaseException | None) -> bool:
        """Undo what was cancelled from here; return whether *error* came of that."""
        if not self._cancelled:
            return False
        while self._cancelled:
            self._cancelled -= 1
            self.task.uncancel()
        by_others = self.task.cancelling() > self._cancelled_before
        return isinstance(error, asyncio.CancelledError) and not by_others


def _left_to_outer(call: Call, *, hard: bool = False) -> bool:
    """Return whether a call around *call* is due too, and interrupts the same code.

    What was due before *call* began, interrupted the code around it.
    """
    outer, now = call.parent, monotonic()
    while outer is not None:
        due = outer.hard_at if hard else outer.soft_at
        raises = hard or outer.budget.soft == "raise"
        due_meanwhile = call.started_mono < due <= now
        if outer.open and raises and due_meanwhile and _interrupts_the_same(outer, call):
            return True
        outer = outer.parent
    return False


def _interrupts_the_same(outer: Call, call: Call) -> bool:
    interrupts = [getattr(one, "interrupt", None) for one in (outer, call)]
    tasks = [getattr(interrupt, "task", None) for interrupt in interrupts]
    if all(tasks):
        return tasks[0] is tasks[1]
    if tasks[0] is not None:
        return False  # the outer limit arrives at an await, and in the block there is none
    return outer.thread_id == call.thread_id
