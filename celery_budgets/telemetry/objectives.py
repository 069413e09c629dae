"""Objectives: the share of calls that start within the wait that their lane promises.

A lane promises a wait by ``slo``, from sending (or the ETA) to the start. Kept are the last hour
and the last day, by the minute.

Counted in the worker main process, joined in one that asks.

See also: :mod:`celery_budgets.worker.backlog.objectives`, which counts the calls of a worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Self

__all__ = ["Objective", "ObjectiveCounts"]

#: The periods that are told, minutes.
HOUR, DAY = 60, 24 * 60


class ObjectiveCounts:
    """Counts the calls of one lane on one worker; not for several threads at once.

    Args:
        seconds: The wait that is promised.
        clock: Returns monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        #: Calls since the start: within the promise, and later.
        self.within = 0
        self.late = 0
        #: (minute, within, late), one entry for each minute with calls.
        self._minutes: deque[tuple[int, int, int]] = deque()

    def count(self, waited: float) -> None:
        """Count a call that has started after *waited* seconds."""
        within = int(waited <= self.seconds)
        self.within += within
        self.late += 1 - within
        minute = self._forget()
        before = (0, 0)
        if self._minutes and self._minutes[-1][0] == minute:
            before = self._minutes.pop()[1:]
        self._minutes.append((minute, before[0] + within, before[1] + 1 - within))

    def to_json(self) -> dict[str, Any]:
        """Return the promise, and [within, late] of the last hour and day, as JSON values."""
        now = self._forget()
        return {
            "seconds": self.seconds,
            "hour": _sum(each for each in self._minutes if each[0] > now - HOUR),
            "day": _sum(self._minutes),
        }

    def _forget(self) -> int:
        """Drop what is older than a day; return the number of the current minute."""
        minute = int(self._clock() // 60)
        while self._minutes and self._minutes[0][0] <= minute - DAY:
            self._minutes.popleft()
        return minute


def _sum(minutes: Iterable[tuple[int, int, int]]) -> list[int]:
    within = late = 0
    for _, inside, outside in minutes:
        within += inside
        late += outside
    return [within, late]


@dataclass(frozen=True, slots=True)
class Objective:
    """How far one lane keeps its promise, on all workers."""

    #: The wait that is promised, seconds.
    seconds: float
    #: Share of the calls of the last hour that started within it; ``None`` without calls.
    hour: float | None = None
    #: The same of the last day.
    day: float | None = None

    @classmethod
    def of(cls, answers: Iterable[Mapping[str, Any] | None]) -> Self | None:
        """Return the objective in the *answers* of a lane's workers; ``None`` if it has none."""
        listed = [facts for facts in answers if facts]
        if not listed:
            return None
        hour, day = (_share([facts[period] for facts in listed]) for period in ("hour", "day"))
        return cls(listed[0]["seconds"], hour, day)


def _share(counts: list[list[int]]) -> float | None:
    within, late = (sum(each[place] for each in counts) for place in (0, 1))
    return within / (within + late) if within + late else None
