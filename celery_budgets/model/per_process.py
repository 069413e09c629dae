"""Objects of which each process makes its own: worker, pool process, web process or script.

A forked process starts without those of its parent, of which another thread may have been in
the middle of something. It is told of the fork, so that a look at them asks no system call.

What belongs to an app is kept by the app itself, and goes with it: in a table of ours, weak as it
may be, an object that knows its app would keep it for ever.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

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
        #: Names what this process has made; a child's is another.
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


#: Attribute of an app that has the objects, with the process that made each, by their PerProcess.
_KEPT = "_celery_budgets_kept"
_NOTHING = (None, None)
