"""A thread of the operating system, also where gevent has put greenlets in the place of threads.

A greenlet would stand still with the event loop; such a thread does not, for as long as C code lets
go of the interpreter lock now and then. It is not there after a fork.

It ends before the process does, which waits for it a little: the end of the interpreter aborts a
process whose thread is in C++ code just then, as in greenlet's.

Used in the worker main process, and in each process that runs blocks with limits.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from math import inf
from typing import Any

__all__ = ["Alarms", "Bell", "SystemThread", "system_lock"]

#: How long the process waits for the thread at its end, seconds.
_LAST_SECONDS = 2.0


def system_lock() -> Any:
    """Return a lock between such a thread and others; not to be held while a greenlet may wait."""
    return _original("_thread", "allocate_lock")()


class Bell:
    """Wakes one such thread from any other."""

    def __init__(self) -> None:
        self._lock = system_lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Have :meth:`wait` return, now or when it is called next."""
        with suppress(RuntimeError):  # another has rung it just now
            self._lock.release()

    def wait(self, seconds: float) -> None:
        """Sleep, in the thread itself, until it is rung."""
        self._lock.acquire(timeout=seconds)


class Alarms:
    """Has functions called by such a thread after a time; others only add some.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._set: deque[tuple[float, Callable[[], object]]] = deque()

    def add(self, seconds: float, act: Callable[[], object]) -> None:
        """Have *act* called, which does not raise, in the order of adding."""
        self._set.append((self._clock() + seconds, act))

    def ring(self) -> float:
        """Call those that are due; return the seconds until the next, infinity if there is none."""
        while self._set and self._set[0][0] <= self._clock():
            self._set.popleft()[1]()
        return max(0.0, self._set[0][0] - self._clock()) if self._set else inf


class SystemThread:
    """Runs a function beside the event loop, until it is told to stop.

    Args:
        run: Is given this object; returns soon after :meth:`wait` has said that it is over.
    """

    def __init__(self, run: Callable[[SystemThread], None]) -> None:
        self._run = run
        # Held until the thread is to stop: to wait for it is to sleep, without an event loop.
        self._over = system_lock()
        self._over.acquire()
        self._ended = system_lock()

    def start(self) -> None:
        """Begin."""
        self._ended.acquire()
        self._pid = os.getpid()
        atexit.register(self._end_with_process)
        _original("_thread", "start_new_thread")(self._main, ())

    def wait(self, seconds: float) -> bool:
        """Sleep, in the thread itself; return at once, and true, where it is to stop."""
        if not self._over.acquire(timeout=seconds):
            return False
        self._over.release()
        return True

    def stop(self) -> None:
        """Have the thread end; do not wait for it."""
        if self._over.locked():
            self._over.release()

    def join(self, seconds: float) -> None:
        """Wait for its end, but no longer than that."""
        if self._ended.acquire(timeout=seconds):
            self._ended.release()

    def _end_with_process(self) -> None:
        if os.getpid() == self._pid:
            self.stop()
            self.join(_LAST_SECONDS)

    def _main(self) -> None:
        try:
            self._run(self)
        finally:
            monkey = sys.modules.get("gevent.monkey")
            if monkey is not None and monkey.is_module_patched("socket"):
                # To wait for a socket, the thread has got an event loop of its own.
                sys.modules["gevent"].get_hub().destroy(destroy_loop=True)
            atexit.unregister(self._end_with_process)
            self._ended.release()


def _original(module: str, name: str) -> Any:
    """Return what *module* had before gevent patched it."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return getattr(import_module(module), name)
    return monkey.get_original(module, name)
