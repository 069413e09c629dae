"""Raises exceptions in another thread, one at a time, so that the call they belong to is known.

Physical limits: Python raises them between two bytecodes. A thread in C code, or in a blocking
system call, notices when that returns.

Runs in the process that runs the call.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celery_budgets.execution.call import Call, HardLimitReached
from celery_budgets.model.per_process import OncePerProcess

__all__ = ["held_off", "is_of", "raise_in", "shielded", "take_back"]

#: By thread, the call for which the last exception was set.
_set_for: dict[int, Call] = {}
#: The same, until the thread has raised it.
_pending: dict[int, Call] = {}
#: By thread, the last of these exceptions that it has raised.
_raised: dict[int, weakref.ref[BaseException]] = {}
_noticed_classes: dict[type[BaseException], type[BaseException]] = {}
#: Reentrant: garbage collection inside it may close a generator that ends a block.
_lock = OncePerProcess(threading.RLock)
#: Threads in bookkeeping of ours: an exception there may leave a lock of logging taken for ever.
_shielded: set[int] = set()
#: By thread, the first limit that its shield has deferred, and its call.
_held_off: dict[int, tuple[Callable[[Call], object], Call]] = {}


@contextmanager
def shielded() -> Iterator[None]:
    """Defer limits in this thread until the end of the outermost shield."""
    thread_id = threading.get_ident()
    outermost = thread_id not in _shielded
    try:
        _shielded.add(thread_id)
        yield
    finally:
        if outermost:
            _unshield(thread_id)


def _unshield(thread_id: int) -> None:
    with _lock():
        _shielded.discard(thread_id)
        first = _held_off.pop(thread_id, None)
    if first is not None:
        # Immediately: at the watchdog's next tick the thread may be shielded again.
        again, call = first
        again(call)


def held_off(call: Call, again: Callable[[Call], object]) -> bool:
    """Return whether the thread of *call* is shielded; then *again* is called at its end."""
    with _lock():
        if call.thread_id not in _shielded:
            return False
        _held_off.setdefault(call.thread_id, (again, call))
        return True


def raise_in(call: Call, error: type[BaseException], again: Callable[[Call], object]) -> None:
    """Raise *error* in the thread of *call*, replacing one that is still pending there.

    Marks it as sent in *call*, unless the thread is shielded now, or is yet to raise the hard
    limit of another block, which a soft one does not replace.

    Args:
        call: The call that has exceeded a limit.
        error: The exception's class.
        again: Called with *call* at the end of the shield, if the thread is shielded.
    """
    with _lock():
        if held_off(call, again):
            return
        replaced = _pending.get(call.thread_id)
        if replaced is not None and replaced is not call and replaced.open:
            if replaced.hard_sent and error is not HardLimitReached:
                return  # that one first; the watchdog sends this one after it
            replaced.soft_sent = False  # the watchdog sends it again
        _set_for[call.thread_id] = _pending[call.thread_id] = call
        # Before it is set: in the current thread it is raised at once.
        if error is HardLimitReached:
            call.hard_sent = True
        else:
            call.soft_sent = True
        _set(call.thread_id, _noticed(error))


def take_back(call: Call) -> None:
    """Cancel the pending exception of *call*; called in its own thread."""
    with _lock():
        if _set_for.get(call.thread_id) is call:
            _set(call.thread_id, None)
            _pending.pop(call.thread_id, None)
            _raised.pop(call.thread_id, None)
            del _set_for[call.thread_id]


def is_of(call: Call, error: BaseException) -> bool:
    """Return whether *error*, just raised in this thread, was set for *call*."""
    raised = _raised.get(call.thread_id)
    return raised is not None and raised() is error and _set_for.get(call.thread_id) is call


def _noticed(error: type[BaseException]) -> type[BaseException]:
    """Return a class whose instances are plain *error* objects, recorded when they are raised.

    The interpreter creates them without arguments; that of a soft limit gets its seconds, as
    when a signal handler raises it.
    """
    if error not in _noticed_classes:

        def new(cls: type, *made: BaseException) -> BaseException:
            if made:
                return made[0]  # Python 3.11 asks a second time, with what it got at the first
            thread_id = threading.get_ident()
            call = _pending.pop(thread_id, None)
            limits = () if call is None or error is HardLimitReached else (call.limits.soft,)
            raised = error(*limits)
            _raised[thread_id] = weakref.ref(raised)
            return raised

        _noticed_classes[error] = type(error.__name__, (error,), {"__new__": new})
    return _noticed_classes[error]


def _set(thread_id: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread_id), ctypes.py_object(error) if error else None
    )


def _forget_other_threads() -> None:
    """Forget, in a forked process, the threads of the parent: thread ids are reused."""
    here = threading.get_ident()
    for table in (_set_for, _pending, _held_off):
        for thread_id in [other for other in table if other != here]:
            table.pop(thread_id, None)
    _shielded.intersection_update({here})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
