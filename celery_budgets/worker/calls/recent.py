"""Counts the failures of the last five minutes, for alerts.

The same period as in the rules for Prometheus, ``examples/observability/rules.yml``. Successful
calls are not counted, and cost nothing here.

Runs in the worker main process.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from time import monotonic

__all__ = ["KILLS", "RecentFailures"]

#: The period, and its resolution, seconds.
SECONDS = 300.0
STEP = 10.0
#: Outcomes that cause an alert.
KILLS = frozenset({"hard_time_limit", "memory_limit"})


class RecentFailures:
    """Counts failures by lane over a sliding period.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._steps: deque[tuple[int, Counter[tuple[str, str]]]] = deque()
        self._totals: dict[str, int] = {}
        # Reentrant: garbage collection inside it may end a block.
        self._lock = threading.RLock()

    def count(self, lane: str, what: str, number: int = 1) -> None:
        """Count *number* events in *lane*; an empty lane stands for the worker."""
        with self._lock:
            step = self._forget()
            if not self._steps or self._steps[-1][0] != step:
                self._steps.append((step, Counter()))
            self._steps[-1][1][lane, what] += number

    def follow(self, what: str, total: int) -> None:
        """Count the increase of a *total* of the worker since the last call."""
        with self._lock:
            more = total - self._totals.get(what, 0)
            self._totals[what] = total
            if more > 0:
                self.count("", what, more)

    def of(self, lane: str) -> dict[str, int]:
        """Return the recent counts of *lane*."""
        with self._lock:
            self._forget()
            every = sum((counted for _, counted in self._steps), Counter[tuple[str, str]]())
        return {what: number for (name, what), number in every.items() if name == lane}

    def _forget(self) -> int:
        """Drop expired counts; return the number of the current interval."""
        step = int(self._clock() // STEP)
        while self._steps and self._steps[0][0] <= step - SECONDS / STEP:
            self._steps.popleft()
        return step
