"""Two hours of each lane in steps of 5 s: what ended and how, what ran, what waited.

Nothing is done per call: once a step, the statistics are compared with those of the step before.
Longer histories are Prometheus' job.

Runs in the worker main process. See also: :mod:`celery_budgets.sending.status.history`, which
joins the histories of all workers.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from time import time
from typing import Any, NamedTuple

from celery_budgets.model.workers.history import COUNTED, HOUR_STEPS, LEVELS, STEP_SECONDS, STEPS
from celery_budgets.telemetry.statistics import CallStatistics

__all__ = ["History", "Moment"]

#: The levels that are noted about once a second.
_NOTED = ("active", "limit", "backlog", "paused")


class Moment(NamedTuple):
    """One lane on this worker now; the highest of a step is kept, and the last limit."""

    #: Calls that run, and that may.
    active: int
    limit: int
    #: Messages at the broker; ``None``: unknown.
    backlog: int | None
    paused: bool


class History:
    """Keeps the last two hours of the lanes of one worker.

    Args:
        lanes: Names of the lanes.
        ended: Returns the statistics since the start, by lane.
        now: Returns the state of a lane.
        rss: Returns the RSS of the largest process that runs calls, bytes; called once a step.
        clock: Returns seconds since the epoch: the steps of all workers are the same.
    """

    def __init__(
        self,
        lanes: Iterable[str],
        ended: Callable[[], dict[str, CallStatistics]],
        now: Callable[[str], Moment],
        rss: Callable[[], int],
        clock: Callable[[], float] = time,
    ) -> None:
        self._lanes = {lane: _Columns() for lane in lanes}
        self._ended = ended
        self._now = now
        self._rss = rss
        self._clock = clock
        #: The step that is under way.
        self._step = self._current()

    def look(self) -> None:
        """Note the state of each lane; called about once a second."""
        step = self._current()
        if step > self._step:
            ended, rss = self._ended(), self._rss()
            for lane, columns in self._lanes.items():
                columns.close(self._step, step, ended.get(lane), rss)
            self._step = step
        for lane, columns in self._lanes.items():
            columns.note(self._now(lane))

    def hour(self, lane: str) -> dict[str, int]:
        """Return the calls of the last hour by their outcome, up to the last whole step."""
        columns = self._lanes[lane].columns
        places = [step % STEPS for step in range(self._step - HOUR_STEPS, self._step)]
        counted = {what: int(sum(columns[what][place] for place in places)) for what in COUNTED}
        return {what: number for what, number in counted.items() if number and what != "seconds"}

    def to_json(self, steps: int, every: int) -> dict[str, Any]:
        """Return the columns of each lane over the last *steps*, the oldest first.

        With ``end``, the instant at which they end, seconds since the epoch.

        Args:
            steps: How many whole steps, at most :data:`STEPS`.
            every: How many of them make one number: what is counted is added, of levels the
                highest is taken.
        """
        end = self._step - self._step % every
        # The oldest place of the ring is that of the step under way.
        begin = end - min(steps, STEPS - every) // every * every
        return {
            "end": end * STEP_SECONDS,
            "lanes": {
                lane: columns.joined(range(begin, end, every), every)
                for lane, columns in self._lanes.items()
            },
        }

    def _current(self) -> int:
        return int(self._clock() // STEP_SECONDS)


class _Columns:
    """The ring of one lane: an array of :data:`STEPS` numbers for each thing that is kept."""

    def __init__(self) -> None:
        self.columns = {what: array("f", bytes(4 * STEPS)) for what in (*COUNTED, *LEVELS)}
        self._before: Counter[str] = Counter()
        self._seconds = 0.0
        self._highest: dict[str, float] = {}

    def note(self, moment: Moment) -> None:
        """Remember *moment* for the step under way."""
        # Shifted by one: in an empty ring there is nothing, which is not a backlog of 0.
        backlog = 0 if moment.backlog is None else moment.backlog + 1
        values = (moment.active, moment.limit, backlog, moment.paused)
        for what, value in zip(_NOTED, values, strict=True):
            self._highest[what] = max(self._highest.get(what, 0), value)

    def close(self, step: int, following: int, ended: CallStatistics | None, rss: int) -> None:
        """Write *step*, which is over, and nothing for those up to *following* that nobody saw."""
        ended = ended or CallStatistics()
        facts: dict[str, float] = {
            what: ended.outcomes[what] - self._before[what] for what in COUNTED
        }
        facts |= self._highest
        facts |= {"seconds": ended.duration.total - self._seconds, "rss": rss}
        for what, column in self.columns.items():
            column[step % STEPS] = facts.get(what, 0)
            for skipped in range(step + 1, min(following, step + STEPS)):
                column[skipped % STEPS] = 0
        self._before, self._seconds = ended.outcomes.copy(), ended.duration.total
        self._highest = {}

    def joined(self, steps: range, every: int) -> dict[str, list[float]]:
        """Return each column that is not empty, *every* numbers as one."""
        found: dict[str, list[float]] = {}
        for what, column in self.columns.items():
            join = max if what in LEVELS else sum
            numbers = [
                join(column[(step + more) % STEPS] for more in range(every)) for step in steps
            ]
            if any(numbers):
                found[what] = [round(number, 3) for number in numbers]
        return found
