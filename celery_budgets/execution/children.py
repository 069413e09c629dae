"""Finds and ends the child processes of a call.

A child is identified by its pid and its start time, so that a later process with the same pid is
never mistaken for it. Children in a session of their own are found too; daemons, which have lost
their parent, only if they were recorded before (:mod:`celery_budgets.execution.child_tracking`).

Covers: finding and ending them. Does not cover: when (:mod:`celery_budgets.worker.pool.children`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from typing import NamedTuple

import psutil

from celery_budgets.execution.memory.pss import processes_below

__all__ = ["GRACE", "Child", "ask_to_end", "began_since", "end", "found_below", "lives"]

#: Seconds between SIGTERM and SIGKILL, as billiard gives to a pool process itself.
GRACE = 0.1
_POLL = 0.005
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
#: Trackers of multiprocessing end by themselves, and must outlive the processes they clean up for.
_TRACKERS = (b"resource_tracker", b"semaphore_tracker")


class Child(NamedTuple):
    """One process below that of a call."""

    pid: int
    #: Clock ticks since the machine's start; where there is no /proc, since the epoch.
    began: int


def began_since(seconds: float) -> int:
    """Return the earliest :attr:`Child.began` of a process that is at most *seconds* old."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
    else:
        now = time.time()
    return int((now - seconds) * _TICKS)


def found_below(pid: int, since: int) -> set[Child]:
    """Return the descendants of *pid* that began at *since* or later."""
    found = set()
    for below in processes_below(pid)[1:]:
        began = _began(below)
        if began is not None and began >= since:
            found.add(Child(below, began))
    return found


def lives(child: Child) -> bool:
    """Return whether *child* still runs; a later process with its pid does not count."""
    return _began(child.pid) == child.began


def _began(pid: int) -> int | None:
    """Return when process *pid* began; ``None`` where it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The process name before it, in brackets, may contain any character.
            fields = stat.read().rpartition(b")")[2].split()
        return None if fields[0] in b"ZX" else int(fields[19])
    except (OSError, IndexError):
        pass
    if os.path.isdir("/proc/self"):
        return None
    try:
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return None if ended else int(process.create_time() * _TICKS)
    except psutil.Error:
        return None


def end(children: Iterable[Child]) -> int:
    """End *children* and their current descendants: SIGTERM, then SIGKILL.

    Blocks until they have ended, at most for :data:`GRACE` seconds.

    Returns:
        The number of processes.
    """
    asked = ask_to_end(children)
    deadline = time.monotonic() + GRACE
    while (left := [child for child in asked if lives(child)]) and time.monotonic() < deadline:
        time.sleep(_POLL)
    for child in left:
        for below in (*found_below(child.pid, child.began), child):
            if not _is_tracker(below.pid):
                _send(below, signal.SIGKILL)
    return len(asked)


def ask_to_end(children: Iterable[Child]) -> list[Child]:
    """Send SIGTERM to *children*, and return those that still existed."""
    return [c for c in children if not _is_tracker(c.pid) and _send(c, signal.SIGTERM)]


def _is_tracker(pid: int) -> bool:
    """Return whether *pid* is a resource tracker of multiprocessing."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as line:
            command = line.read()
    except OSError:
        return False
    return any(tracker in command for tracker in _TRACKERS)


def _send(child: Child, signum: signal.Signals) -> bool:
    """Send a signal to *child*, and return whether it still existed."""
    handle = _handle(child.pid)
    try:
        # Checked after the pidfd is open, which always refers to the same process.
        if not lives(child):
            return False
        if handle is None:
            os.kill(child.pid, signum)
        else:
            signal.pidfd_send_signal(handle, signum)
        return True
    except OSError:
        return False
    finally:
        if handle is not None:
            os.close(handle)


def _handle(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, an older kernel, or the process is gone
        return None
