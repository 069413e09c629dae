"""Per-process singletons: worker, pool process, web process or script each create their own.

A forked process does not inherit those of its parent, which another thread may have been changing
at the fork. A hook after the fork resets them, so that an access needs no system call.

The app itself holds the objects that belong to it, and is freed with them: in a module-level
table, even a weak one, an object that refers to its app would keep the app alive for ever.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["OncePerProcess", "PerProcess"]

T = TypeVar("T")


class OncePerProcess(Generic[T]):
    """A singleton per process, created at its first use; thread-safe.

    Args:
        make: Returns a new object.

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
        # Reentrant: garbage collection inside it may close a generator that ends a block.
        self._lock = threading.RLock()

    def put(self, made: T) -> None:
        """Set the object of this process."""
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
    """A singleton per app and process, created at its first use; thread-safe.

    Args:
        make: Returns a new object.

    Example:
        >>> ledgers = PerProcess(Ledger)
        >>> ledgers.of(app) is ledgers.of(app)
        True
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        #: Identifies the objects of this process; a forked child has another.
        self._process = OncePerProcess(object)
        self._lock = OncePerProcess(threading.RLock)

    def of(self, app: Any) -> T:
        """Return the object of *app*."""
        process = self._process()
        kept: dict[Any, Any] = app.__dict__.setdefault(_KEPT, {})
        maker, made = kept.get(self, _NOTHING)
        if maker is not process:
            with self._lock():
                maker, made = kept.get(self, _NOTHING)
                if maker is not process:
                    made = self._make()
                    kept[self] = process, made
        found: T = made
        return found


#: Attribute of an app that holds its objects, each with the process that created it.
_KEPT = "_celery_budgets_kept"
_NOTHING = (None, None)
