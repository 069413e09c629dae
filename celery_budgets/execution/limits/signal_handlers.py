"""Installs the handlers of the signals that interrupt calls, whatever user code did to them.

A body, or a library that it imports, may handle, ignore, reset or block any signal, and leave it
so for every later call of its process. So the handler is installed at each call. Checking first
would not suffice: C code may have replaced the handler too (faulthandler.register).

Runs in the process that runs the call.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

try:
    # The functions that `signal` wraps: both together take 1 us, and 7.5 us with the wrappers.
    import _signal as _calls  # type: ignore[import-not-found]
except ImportError:  # another Python than CPython
    _calls = signal

__all__ = ["hear", "is_heard"]

Handler = Callable[[int, Any], Any]

_UNBLOCK = int(getattr(signal, "SIG_UNBLOCK", 0))


def hear(signum: int, handler: Handler) -> None:
    """Install *handler* for *signum* and unblock it; only in the main thread."""
    # In this order: a blocked signal that is pending is handled as soon as it is unblocked.
    _calls.signal(signum, handler)
    _calls.pthread_sigmask(_UNBLOCK, (signum,))


def is_heard(signum: int, handler: Handler) -> bool:
    """Return whether *handler* gets *signum* in the main thread; may be called in any thread.

    Without Linux's ``/proc``, signal masks are not checked.
    """
    return _calls.getsignal(signum) is handler and not _is_blocked(signum)


def _is_blocked(signum: int) -> bool:
    try:
        # The main thread has the id of its process, also after a fork.
        with open(f"/proc/self/task/{os.getpid()}/status", "rb") as status:
            masks = [int(line.split()[1], 16) for line in status if line.startswith(b"SigBlk:")]
    except (OSError, ValueError):
        return False
    return any(mask >> (signum - 1) & 1 for mask in masks)
