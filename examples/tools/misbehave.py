"""Tools that break their budget on purpose, each in its own way."""

from __future__ import annotations

import sys
import time

from celery.exceptions import SoftTimeLimitExceeded

__all__ = ["allocate_everything", "ignore_soft_limit", "wait_too_long"]


def wait_too_long(seconds: float) -> str:
    """Wait for an answer that comes too late: the soft limit ends the call."""
    time.sleep(seconds)
    return f"waited {seconds:g} s"


def ignore_soft_limit(seconds: float) -> str:
    """Swallow the soft limit and go on, as ``except Exception`` in a loop does.

    The hard limit ends this call together with its process; nothing less could.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            time.sleep(deadline - time.monotonic())
        except SoftTimeLimitExceeded:
            continue
    return f"worked on for {seconds:g} s"


def allocate_everything() -> int:
    """Ask for more memory than any machine has, which Python answers by a MemoryError."""
    return len(bytearray(sys.maxsize - 1))
