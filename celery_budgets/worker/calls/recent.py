"""What went wrong in the last five minutes: what an alert is about, until it is over.

The same time as that of the rules for Prometheus, ``examples/observability/rules.yml``. A call
that succeeds is not counted, and costs nothing here.

Runs in the worker main process.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from time import monotonic

__all__ = ["KILLS", "RecentFailures"]

#: How long something is recent, and how exactly that is told, seconds.
SECONDS = 300.0
STEP = 10.0
#: Outcomes that an alert is about.
KILLS = frozenset({"hard_time_limit", "memory_limit"})


class RecentFailures:
    """Counts by lane what went wrong, and forgets it.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._steps: deque[tuple[int, Counter[tuple[str, str]]]] = deque()
        self._totals: dict[str, int] = {}
        # Entered again where the garbage collector, inside of it, ends a block.
        self._lock = threading.RLock()

    def count(self, lane: str, what: str, number: int = 1) -> None:
        """Count *number* events in *lane*; one of no lane is of the worker."""
        with self._lock:
            step = self._forget()
            if not self._steps or self._steps[-1][0] != step:
                self._steps.append((step, Counter()))
            self._steps[-1][1][lane, what] += number

    def follow(self, what: str, total: int) -> None:
        """Count by how much a *total* has grown since it was told last; of the worker."""
        with self._lock:
            more = total - self._totals.get(what, 0)
            self._totals[what] = total
            if more > 0:
                self.count("", what, more)

    def of(self, lane: str) -> dict[str, int]:
        """Return what was counted in *lane* and is recent."""
        with self._lock:
            self._forget()
            every = sum((counted for _, counted in self._steps), Counter[tuple[str, str]]())
        return {what: number for (name, what), number in every.items() if name == lane}

    def _forget(self) -> int:
        """Drop what is too old; return the number of the step of now."""
        step = int(self._clock() // STEP)
        while self._steps and self._steps[0][0] <= step - SECONDS / STEP:
            self._steps.popleft()
        return step
