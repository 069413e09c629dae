"""Signals that calls are interrupted by: heard by us, whatever a program has done to them.

A body, or a library that it imports, may handle, ignore, reset or block any signal, and leave it
so for every later call of its process. So what we hear is put right at each call; asking first
would say too little: code in C may have replaced the handler as well (faulthandler.register).

Runs in the process that runs the call.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

try:
    # What the functions of `signal` wrap: both together take 1 us here, and 7.5 us there.
    import _signal as _calls  # type: ignore[import-not-found]
except ImportError:  # another Python than CPython
    _calls = signal

__all__ = ["hear", "is_heard"]

Handler = Callable[[int, Any], Any]

_UNBLOCK = int(getattr(signal, "SIG_UNBLOCK", 0))


def hear(signum: int, handler: Handler) -> None:
    """Have *handler* told of *signum*, in this thread too; only in the main thread."""
    # In this order: what was held back is handled as soon as it is let through.
    _calls.signal(signum, handler)
    _calls.pthread_sigmask(_UNBLOCK, (signum,))


def is_heard(signum: int, handler: Handler) -> bool:
    """Return whether *handler* is told of *signum* in the main thread; asked in any thread.

    Where Linux says nothing of masks, as far as Python knows.
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
