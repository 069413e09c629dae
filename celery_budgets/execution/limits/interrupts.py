"""Interrupts running calls on each pool; gevent and solo have modules of their own.

An interrupt has a soft form (an exception in the call) and a hard one (the call ends, whether or
not its code stops). :attr:`Interrupt.enforces` describes what a pool supports; the worker logs it
at its start.

Runs in the process that runs calls. See also: :mod:`celery_budgets.execution.limits.watchdog`,
which decides when.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import Any, ClassVar

from celery._state import _task_stack
from celery.exceptions import SoftTimeLimitExceeded

from celery_budgets.errors import MemoryLimitExceeded
from celery_budgets.execution.call import Call, HardLimitReached
from celery_budgets.execution.child_tracking import family
from celery_budgets.execution.flight.record import Reason
from celery_budgets.execution.flight.recorder import recorder
from celery_budgets.execution.limits.async_exception import held_off, raise_in, take_back
from celery_budgets.execution.limits.signal_handlers import hear, is_heard
from celery_budgets.execution.process_exit import BEFORE_EXIT, FLUSH_SECONDS
from celery_budgets.execution.safely import guarded
from celery_budgets.model.headers import HEADER_TERMS

__all__ = [
    "EXIT_CODE", "AsynchronousInterrupt", "Interrupt", "ProcessInterrupt", "ThreadInterrupt",
    "raise_for_memory",
]  # fmt: skip

#: Exit code of a pool process that ended itself at a hard limit (``EX_SOFTWARE``).
EXIT_CODE = 70
#: A soft signal at most this early is still meant for this call, seconds.
_EARLY = 0.1
#: A soft signal meant for an earlier call arrives within this time of a call's start, seconds.
_STRAY = 1.0


class Interrupt:
    """Base class, which interrupts nothing: for a process in which calls are only measured."""

    #: How this pool enforces the ``soft``, the ``hard`` and the ``memory`` limit, a phrase each.
    enforces: ClassVar[dict[str, str]] = {"soft": "no", "hard": "no", "memory": "measured"}
    #: How long after a limit the watchdog acts, seconds: the worker's own timer acts first.
    soft_grace = 0.0
    hard_grace = 0.0
    #: Whether the memory of the process is that of a single call.
    attributes_memory = False
    #: Whether a SystemExit in a call ends the process that runs it.
    ends_process = False
    #: Whether the result of a call is stored at its hard limit, while its code may run on.
    abandons = False
    #: Whether the child processes of a call are counted as its own and ended with it.
    owns_children = False
    #: Whether a body that returns after its hard limit counts as over it: nothing could stop it.
    judges_late = False

    def enter(self, call: Call) -> None:
        """Prepare for *call*; called in the thread that is about to run its body."""

    def leave(self, call: Call) -> None:
        """Make sure that no interrupt reaches this thread later; may itself be interrupted."""
        call.open = False

    def soft(self, call: Call) -> None:
        """Raise ``SoftTimeLimitExceeded`` in the call."""

    def hard(self, call: Call) -> None:
        """End the call, or mark it as ended; called again while its body runs on."""

    def memory_soft(self, call: Call, rss: int) -> None:
        """Raise ``MemoryLimitExceeded`` in a call that is alone in its process; *rss* in bytes."""
        if self.attributes_memory:
            call.memory_due = rss  # the handler of the soft signal checks it
            self.soft(call)

    def memory(self, call: Call) -> None:
        """End the call at its hard memory limit."""

    def frame_of(self, call: Call) -> FrameType | None:
        """Return the innermost frame of the call's thread; ``None`` if it is not known."""
        return sys._current_frames().get(call.thread_id)


class AsynchronousInterrupt(Interrupt):
    """Base class of interrupts that raise an asynchronous exception in the thread of a call."""

    def __init__(self) -> None:
        # Reentrant: a block in the call may be interrupted at the end of its shield, and garbage
        # collection inside it may close a generator that ends a block.
        self._lock = threading.RLock()

    def leave(self, call: Call) -> None:
        """Close the call, then take back an exception that has not arrived yet."""
        with self._lock:
            call.open = False
        take_back(call)

    def raise_in_thread(
        self, call: Call, error: type[BaseException], again: Callable[[Call], object]
    ) -> None:
        """Raise *error* in the thread of *call* as soon as it runs Python code, if it is open."""
        with self._lock:
            if call.open:
                raise_in(call, error, again)


class ProcessInterrupt(AsynchronousInterrupt):
    """Prefork: second line behind the worker's own timers; ends the process."""

    enforces: ClassVar = {
        "soft": "yes",
        "hard": "yes, by kill",
        "memory": "yes, by kill; the soft one in Python code",
    }
    soft_grace = 0.15
    hard_grace = 0.3
    attributes_memory = True
    ends_process = True
    owns_children = True

    #: billiard's soft signal; billiard installs its own handler after worker_process_init.
    _SIGNAL = getattr(signal, "SIGUSR1", None)

    def __init__(self) -> None:
        super().__init__()
        self._call: Call | None = None
        self._handler = self._on_soft_signal
        #: Whether a soft signal has arrived since the last call.
        self._early = False

    def enter(self, call: Call) -> None:
        """Install the handler of the soft signal, which user code may have replaced or blocked."""
        if self._SIGNAL is not None:
            hear(self._SIGNAL, self._handler)
        self._call = call
        if self._early:
            self._early = False
            _raise_if_terminated(call)

    def soft(self, call: Call) -> None:
        """Send the soft signal to the main thread, where it also ends a blocking system call.

        If the body has replaced the handler, raise the exception asynchronously.
        """
        if self._SIGNAL is not None and is_heard(self._SIGNAL, self._handler):
            signal.pthread_kill(threading.main_thread().ident or 0, self._SIGNAL)
        elif not call.memory_due:
            self.raise_in_thread(call, SoftTimeLimitExceeded, self.soft)

    def hard(self, call: Call) -> None:
        """End this process; the worker reads the reason from the flight recorder."""
        self._end(call, Reason.HARD_TIME_LIMIT)

    def memory(self, call: Call) -> None:
        """End this process; the worker reads the reason from the flight recorder."""
        self._end(call, Reason.MEMORY_LIMIT)

    def _end(self, call: Call, reason: Reason) -> None:
        recorder().killed(call, reason)
        for flush in BEFORE_EXIT:
            guarded(flush, FLUSH_SECONDS)
        # Under the lock, so that a body whose child has ended cannot return meanwhile: its record
        # would lose the reason, and its outcome would be stored by half.
        with self._lock:
            if call.open:
                if call.budget.children == "end":
                    guarded(family().ask_to_end, call)
                os._exit(EXIT_CODE)

    def _on_soft_signal(self, signum: int, frame: Any) -> None:
        """Raise in the body of a call past its limit; never in the bookkeeping around it.

        Mirrors billiard.pool.soft_timeout_sighandler. Differs: that raises wherever the process
        is, also between two calls, or while a result is stored.
        """
        call, task = self._call, _task_stack.top
        if call is None or not call.open:
            if task is not None and getattr(task.request, HEADER_TERMS, None) is None:
                raise SoftTimeLimitExceeded  # a task that is not budgeted: as billiard does
            self._early = True
            return  # between two calls, or around the body of one
        if held_off(call, self.soft):
            return
        _raise_if_terminated(call)
        raise_for_memory(call)
        if monotonic() < call.soft_at - _EARLY:
            if _is_of_others(call):
                raise SoftTimeLimitExceeded
            return  # extended, or meant for an earlier call
        if call.soft_sent or call.budget.soft == "warn":
            return
        call.soft_sent = True
        raise SoftTimeLimitExceeded(call.limits.soft)


class ThreadInterrupt(AsynchronousInterrupt):
    """Threads: an asynchronous exception; at the hard limit the call is abandoned.

    Args:
        on_abandon: Called once per call that reaches its hard limit while its thread may run
            on; must not block.
        on_return: Called when the thread of an abandoned call has ended its body.
    """

    enforces: ClassVar = {
        "soft": "in Python code; a blocking call notices when it returns",
        "hard": "result and slot at the limit; the thread is abandoned",
        "memory": "measured over the worker, which pauses above the limit",
    }
    abandons = True

    def __init__(
        self, on_abandon: Callable[[Call], None], on_return: Callable[[Call], None]
    ) -> None:
        super().__init__()
        self._on_abandon = on_abandon
        self._on_return = on_return

    def leave(self, call: Call) -> None:
        """Close the call, then take back an exception that has not arrived yet."""
        super().leave(call)
        if call.hard_sent:
            self._on_return(call)

    def soft(self, call: Call) -> None:
        """Raise in the thread as soon as it runs Python code."""
        self.raise_in_thread(call, SoftTimeLimitExceeded, self.soft)

    def hard(self, call: Call) -> None:
        """Give the call up, and keep asking its thread to end."""
        with self._lock:
            if not call.open:
                return
            first, call.hard_sent = not call.hard_sent, True
            raise_in(call, HardLimitReached, self.hard)
            if first:
                # Under the lock, so that the thread cannot return before it is abandoned.
                self._on_abandon(call)


def raise_for_memory(call: Call) -> None:
    """Raise once per call, in a signal handler, if the watchdog has requested it."""
    if call.memory_due and not call.memory_sent:
        call.memory_sent = True
        raise MemoryLimitExceeded(call.memory_due, call.budget.max_rss)


def _raise_if_terminated(call: Call) -> None:
    """Raise if the call was terminated with the soft signal (``revoke``), as in plain Celery."""
    if recorder().is_terminated(call):
        call.terminated = True
        raise SoftTimeLimitExceeded


def _is_of_others(call: Call) -> bool:
    """Return whether a soft signal so early comes from neither this package nor the worker."""
    extended = call.soft_at != call.started_mono + call.limits.soft
    return not extended and not call.memory_due and monotonic() > call.started_mono + _STRAY
