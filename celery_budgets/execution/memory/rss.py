"""Reads current resident set sizes; the single place to replace in tests.

Covers: this process (1 to 2 microseconds: ``/proc/self/statm`` kept open on Linux) and any
other process by pid. Current values, never ``ru_maxrss``, which is a peak.
Does not cover: the reaction to them (:mod:`celery_budgets.execution.limits.watchdog`).
"""

from __future__ import annotations

import math
import os

__all__ = ["forget_recent", "recent_rss", "rss", "rss_of"]

try:
    _PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
except (AttributeError, ValueError, OSError):  # pragma: no cover - not POSIX
    _PAGE_BYTES = 4096

_statm: int | None = None
#: The last reading of this process: its instant (monotonic), and the size, bytes.
_last = (-math.inf, 0)


def _forget_statm() -> None:
    """Discard, in a forked child, the descriptor of the parent and the last reading."""
    global _statm
    forget_recent()
    if _statm is not None:
        os.close(_statm)
        _statm = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_statm)


def rss() -> int:
    """Return the resident set size of this process, bytes."""
    global _statm
    try:
        if _statm is None:
            _statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        return int(os.pread(_statm, 96, 0).split(None, 2)[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        _statm = None
        import psutil  # only without /proc: the import takes 10 ms

        return int(psutil.Process().memory_info().rss)


def recent_rss(now: float, age: float) -> int:
    """Return the resident set size of this process, bytes, from the last reading if it is recent.

    A reading takes a system call, which is a tenth of the overhead of a short call.

    Args:
        now: Monotonic seconds.
        age: Maximum age of the last reading, seconds. In a millisecond a process can touch 5 to
            10 MB of new memory.

    See also :func:`forget_recent`, for use after a call that may have allocated memory.
    """
    global _last
    at, size = _last
    if now - at > age:
        size = rss()
        _last = (now, size)
    return size


def forget_recent() -> None:
    """Make the next :func:`recent_rss` read again."""
    global _last
    _last = (-math.inf, 0)


def rss_of(pid: int) -> int | None:
    """Return the resident set size of process *pid*, bytes; ``None`` if it has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split(None, 2)[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        import psutil

        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return None
