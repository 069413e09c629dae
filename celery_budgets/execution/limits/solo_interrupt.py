"""Interrupts calls of the pool ``solo``, which run in the thread of the worker.

That is the main thread of ``celery worker``, and another thread of a program that embeds a
worker, as Celery's plugin for pytest does. A signal is sent only if our handler is installed.

Runs in the process that runs the call. See also: :mod:`celery_budgets.execution.limits.interrupts`.
"""

from __future__ import annotations

import signal
import threading
from time import monotonic
from typing import Any, ClassVar

from celery.exceptions import SoftTimeLimitExceeded

from celery_budgets.execution.call import Call, HardLimitReached
from celery_budgets.execution.limits.async_exception import held_off
from celery_budgets.execution.limits.interrupts import AsynchronousInterrupt, raise_for_memory
from celery_budgets.execution.limits.signal_handlers import hear, is_heard

__all__ = ["MainThreadInterrupt"]


class MainThreadInterrupt(AsynchronousInterrupt):
    """Solo: by a signal in the main thread, which cannot be ended; elsewhere by an exception."""

    enforces: ClassVar = {
        "soft": "yes",
        "hard": "in Python code and blocking system calls; not in C code that does not return",
        "memory": "the soft one in Python code; above the hard one the worker pauses",
    }
    attributes_memory = True
    judges_late = True
    #: Celery itself uses SIGUSR1 in the worker main process.
    _SIGNAL = getattr(signal, "SIGVTALRM", None)

    def __init__(self) -> None:
        super().__init__()
        self._call: Call | None = None
        self._handler = self._on_signal

    def enter(self, call: Call) -> None:
        """Install the handler of the signal, which user code may have replaced or blocked."""
        if self._SIGNAL is not None and _in_main_thread(call):
            hear(self._SIGNAL, self._handler)
        self._call = call

    def soft(self, call: Call) -> None:
        """Send the signal to the main thread, where it also ends a blocking system call."""
        if not self._send(call):
            self.raise_in_thread(call, SoftTimeLimitExceeded, self.soft)

    def hard(self, call: Call) -> None:
        """Send it repeatedly; its exception is not caught by ``except Exception``."""
        if not self._send(call):
            self.raise_in_thread(call, HardLimitReached, self.hard)

    def memory_soft(self, call: Call, rss: int) -> None:
        """Raise ``MemoryLimitExceeded``, unless the process is a program that embeds the worker."""
        if _in_main_thread(call):
            call.memory_due = rss
            self._send(call)

    def _send(self, call: Call) -> bool:
        """Send the signal; ``False`` if its handler is not ours, or *call* is in another thread."""
        signum = self._SIGNAL
        if signum is None or not _in_main_thread(call) or not is_heard(signum, self._handler):
            return False
        signal.pthread_kill(call.thread_id, signum)
        return True

    def _on_signal(self, signum: int, frame: Any) -> None:
        call, now = self._call, monotonic()
        if call is None or not call.open or held_off(call, self.soft):
            return
        if now >= call.hard_at:
            call.hard_sent = True
            raise HardLimitReached
        raise_for_memory(call)
        if now >= call.soft_at and not call.soft_sent and call.budget.soft == "raise":
            call.soft_sent = True
            raise SoftTimeLimitExceeded(call.limits.soft)


def _in_main_thread(call: Call) -> bool:
    return call.thread_id == threading.main_thread().ident
