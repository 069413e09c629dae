"""One object per app in each process that uses it: worker, pool process, web process or script.

A forked process starts without those of its parent, of which another thread may have been in
the middle of something.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["PerProcess"]

T = TypeVar("T")


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
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._made: WeakKeyDictionary[Any, T] = WeakKeyDictionary()
        # Entered again where the garbage collector, inside of it, ends a generator with a block.
        self._lock = threading.RLock()

    def of(self, app: Any) -> T:
        """Return the object of *app*."""
        made = self._made.get(app)
        if made is None:
            with self._lock:
                made = self._made.get(app)
                if made is None:
                    made = self._made[app] = self._make()
        return made
