"""Interrupts blocks under a budget: code in a thread, a greenlet or a coroutine.

A block may be enclosed in a call that has limits of its own. If both limits are due at the same
time, only the outer one interrupts: it ends the block as well, so that the code is interrupted
once and not twice.

See also: :mod:`celery_budgets.execution.limits.interrupts`, for tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
from time import monotonic
from typing import ClassVar

from celery.exceptions import SoftTimeLimitExceeded

from celery_budgets.errors import MemoryLimitExceeded
from celery_budgets.execution.call import Call, HardLimitReached
from celery_budgets.execution.limits.async_exception import is_of, raise_in
from celery_budgets.execution.limits.greenlet_interrupt import GreenletInterrupt
from celery_budgets.execution.limits.interrupts import (
    AsynchronousInterrupt,
    Interrupt,
)

__all__ = [
    "FROM_OUTSIDE", "BlockInterrupt", "CoroutineInterrupt", "GreenletBlockInterrupt",
    "ThreadBlockInterrupt", "in_coroutine", "interrupt_here",
]  # fmt: skip


_COROUTINE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
#: Exceptions that may be raised between any two bytecodes.
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
    """Return the interrupt for a block in this thread or greenlet."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return GreenletBlockInterrupt()
    return ThreadBlockInterrupt()


class BlockInterrupt(Interrupt):
    """Base class of the interrupts of blocks."""

    judges_late = True

    def sent(self, call: Call, error: BaseException) -> bool:
        """Return whether *error* is our interrupt of *call*, and no other exception."""
        return False


class ThreadBlockInterrupt(AsynchronousInterrupt, BlockInterrupt):
    """A block in a thread: an asynchronous exception, repeated from the hard limit on."""

    enforces: ClassVar = {
        "soft": "in Python code; a blocking call notices when it returns",
        "hard": "in Python code; a thread cannot be killed",
        "memory": "measured over the process",
    }

    def soft(self, call: Call) -> None:
        """Raise in the thread as soon as it runs Python code."""
        with self._lock:
            if call.open and not _left_to_outer(call):
                raise_in(call, SoftTimeLimitExceeded, self.soft)

    def hard(self, call: Call) -> None:
        """Raise an exception that ``except Exception`` does not catch, until the block ends."""
        with self._lock:
            if call.open and not _left_to_outer(call, hard=True):
                raise_in(call, HardLimitReached, self.hard)

    def sent(self, call: Call, error: BaseException) -> bool:
        """Return whether *error* is our interrupt of *call*, and no other exception."""
        return isinstance(error, SoftTimeLimitExceeded | HardLimitReached) and is_of(call, error)


class GreenletBlockInterrupt(GreenletInterrupt, BlockInterrupt):
    """A block in a greenlet (gevent): throws into it, repeatedly from the hard limit on."""

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
        """Throw an exception that ``except Exception`` does not catch."""
        if not _left_to_outer(call, hard=True):
            call.hard_sent = True
            self._throw(call, HardLimitReached())


class CoroutineInterrupt(BlockInterrupt):
    """A block in a coroutine: cancels its asyncio task, which the end of the block translates.

    Mirrors asyncio.timeout. A coroutine notices at an ``await``, and only while its event loop
    runs.
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
        #: How often this object has cancelled the task.
        self._cancelled = 0

    def leave(self, call: Call) -> None:
        """Close the block; callbacks that the loop has scheduled have no effect any more."""
        call.open = False

    def soft(self, call: Call) -> None:
        """Cancel the task once."""
        self._schedule(call, hard=False)

    def hard(self, call: Call) -> None:
        """Cancel the task, repeatedly while the block is open."""
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
    """Return whether an enclosing call is due too, and interrupts the same code.

    A limit that was due before *call* began has interrupted the code around it already.
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
        return False  # the outer limit needs an await, and a thread's block has none
    return outer.thread_id == call.thread_id
