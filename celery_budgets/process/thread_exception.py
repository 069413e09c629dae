"""Exceptions that one thread raises in another: one at a time, so it is known on whose behalf.

Physical limits: Python raises them between two bytecodes. A thread in C code, or in a blocking
system call, notices when that returns.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from celery_budgets.process.call import Call

__all__ = ["is_of", "is_shielded", "raise_in", "shielded", "take_back"]

#: By thread, the call on whose behalf the last exception was set there.
_set_for: dict[int, Call] = {}
#: Entered again where the garbage collector, inside of it, ends a generator that has a block.
_lock = threading.RLock()


#: Threads in bookkeeping of ours: an exception there may leave a lock of logging taken for ever.
_shielded: set[int] = set()


@contextmanager
def shielded() -> Iterator[None]:
    """Hold limits off this thread for a moment; they come again at the watchdog's next look."""
    thread_id = threading.get_ident()
    _shielded.add(thread_id)
    try:
        yield
    finally:
        _shielded.discard(thread_id)


def is_shielded() -> bool:
    """Say whether this thread is not to be interrupted now."""
    return threading.get_ident() in _shielded


def raise_in(call: Call, error: type[BaseException]) -> bool:
    """Have the thread of *call* raise *error*, in place of one that it has not raised yet.

    Returns:
        Whether it will: not where the thread is shielded now.
    """
    with _lock:
        if call.thread_id in _shielded:
            return False
        _set_for[call.thread_id] = call
        _set(call.thread_id, error)
        return True


def take_back(call: Call) -> None:
    """Take back what was set on behalf of *call* and not raised yet; in its own thread."""
    with _lock:
        if _set_for.get(call.thread_id) is call:
            _set(call.thread_id, None)
            del _set_for[call.thread_id]


def is_of(call: Call, error: BaseException) -> bool:
    """Say whether *error*, raised in this thread just now, was set on behalf of *call*."""
    # Those of a signal's handler come with the limit, these are made by the interpreter.
    return not error.args and _set_for.get(call.thread_id) is call


def _set(thread_id: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread_id), ctypes.py_object(error) if error else None
    )
