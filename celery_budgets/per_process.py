"""Objects of which each process makes its own: worker, pool process, web process or script.

A forked process starts without those of its parent, of which another thread may have been in
the middle of something. It is told of the fork, so that a look at them asks no system call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["OncePerProcess", "PerProcess"]

T = TypeVar("T")


class OncePerProcess(Generic[T]):
    """Makes its object at the first call in this process, whichever thread is first.

    Args:
        make: Returns a new one.

    Example:
        >>> recorder = OncePerProcess(list)
        >>> recorder() is recorder()
        True
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._made: T | None = None
        # Entered again where the garbage collector, inside of it, ends a generator with a block.
        self._lock = threading.RLock()

    def put(self, made: T) -> None:
        """Make *made* the object of this very process."""
        self._made = made

    def __call__(self) -> T:
        """Return the object of this process."""
        made = self._made
        if made is None:
            with self._lock:
                made = self._made
                if made is None:
                    made = self._made = self._make()
        return made


class PerProcess(Generic[T]):
    """Makes the object of an app at its first use in this process, whichever thread is first.

    Args:
        make: Returns a new one.

    Example:
        >>> ledgers = PerProcess(Ledger)
        >>> ledgers.of(app) is ledgers.of(app)
        True
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._by_app: OncePerProcess[WeakKeyDictionary[Any, T]]
        self._by_app = OncePerProcess(WeakKeyDictionary)
        self._lock = OncePerProcess(threading.RLock)

    def of(self, app: Any) -> T:
        """Return the object of *app*."""
        by_app = self._by_app()
        made = by_app.get(app)
        if made is None:
            with self._lock():
                made = by_app.get(app)
                if made is None:
                    made = by_app[app] = self._make()
        return made
