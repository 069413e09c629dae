"""Measures a worker with all of its processes, about once a second and never per call.

It uses the proportional set size (PSS), which counts a page that eight forked processes share
once, while the sum of their RSS would count it eight times.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from math import inf
from time import monotonic

import psutil

from celery_budgets.execution.memory import rss as memory

__all__ = ["ProcessTree", "processes_below", "pss_of"]

#: Largest share of the time for reading PSS, for which the kernel walks every page.
_SHARE_OF_TIME = 0.004


def pss_of(pid: int) -> int | None:
    """Return the proportional set size of process *pid*, bytes; ``None`` if it has ended.

    If the kernel does not report it, the memory that the process shares with no other.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as rollup:
            for line in rollup:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except (psutil.Error, OSError):
        return memory.rss_of(pid)


def processes_below(pid: int) -> list[int]:
    """Return *pid* and its descendants."""
    found = [pid]
    for parent in found:
        found += _children(parent)
    return found


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        children: list[int] = []
        for thread in threads:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as names:
                children += map(int, names.read().split())
        return children
    except OSError:
        pass
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


def _rss_of_all(pids: list[int]) -> int:
    return sum(memory.rss_of(pid) or 0 for pid in pids)


class ProcessTree:
    """Measures one process and its descendants.

    Args:
        pid: Process id of the worker.
        clock: Returns monotonic seconds.
        members: Returns the process ids to measure, instead of *pid* and its descendants; PSS
            is read again when they have changed.
    """

    def __init__(
        self,
        pid: int,
        clock: Callable[[], float] = monotonic,
        members: Callable[[], list[int]] | None = None,
    ) -> None:
        self._members = members or (lambda: processes_below(pid))
        self._chosen = members is not None
        self._measured: list[int] = []
        self._clock = clock
        #: The last PSS, and the sum of RSS at that time, bytes.
        self._last = (0, 0)
        self._next_at = 0.0

    def size(self, enough: int = 0, certain: float = inf) -> int:
        """Return the PSS of the whole tree, bytes.

        Args:
            enough: A sum of RSS up to this is returned instead: PSS is never more, and reading
                RSS costs a hundredth.
            certain: A result above this is always read again, even if the last reading is recent.
        """
        pids = self._members()
        most = _rss_of_all(pids)
        if most <= enough:
            return most
        changed = self._chosen and pids != self._measured
        if changed or self._clock() >= self._next_at:
            return self._read(pids, most)
        # Between two readings of PSS, it is estimated by the change of RSS.
        size, beside = self._last
        about = max(0, min(most, size + most - beside))
        return about if about <= certain else self._read(pids, most)

    def _read(self, pids: list[int], most: int) -> int:
        began = self._clock()
        size = sum(pss_of(pid) or 0 for pid in pids)
        # On a busy machine that takes long, and memory given back meanwhile is in one of the two
        # only: with the lower sum, what is taken again later counts as growth.
        self._last, self._measured = (size, min(most, _rss_of_all(pids))), pids
        ended = self._clock()
        self._next_at = ended + (ended - began) / _SHARE_OF_TIME
        return max(0, min(most, size))
