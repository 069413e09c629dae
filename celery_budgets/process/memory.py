"""Current resident set sizes: the one seam through which memory is read.

Covers: this process (1 to 2 microseconds: ``/proc/self/statm`` kept open on Linux) and any
other process by pid. Current values, never ``ru_maxrss``, which does not fall again.
Does not cover: what is done about them (:mod:`celery_budgets.process.watchdog`).
"""

from __future__ import annotations

import os

__all__ = ["rss", "rss_of"]

try:
    _PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
except (AttributeError, ValueError, OSError):  # pragma: no cover - not POSIX
    _PAGE_BYTES = 4096

_statm: int | None = None


def _forget_statm() -> None:
    """Drop the descriptor in a forked child: it still reads the parent's size."""
    global _statm
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
        import psutil  # only where there is no /proc: it takes 10 ms to import

        return int(psutil.Process().memory_info().rss)


def rss_of(pid: int) -> int | None:
    """Return the resident set size of process *pid*, bytes; ``None`` when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split(None, 2)[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        import psutil

        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return None
