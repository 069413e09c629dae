"""Counts what the calls of one worker take of limits over the fleet, by limit and never by key.

Runs in the worker main process. See also: :mod:`celery_budgets.worker.remote.metrics_source`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from celery_budgets.telemetry.histogram import Histogram

__all__ = ["LimitCounts"]


class LimitCounts:
    """The places that running calls hold, and how long calls have waited for theirs."""

    def __init__(self) -> None:
        #: Places that calls of this worker hold now, by limit.
        self.in_use: Counter[str] = Counter()
        #: How long calls that could have started waited, seconds, by limit.
        self.waits: dict[str, Histogram] = {}
        #: Called with the limit and the seconds of each wait.
        self.listeners: list[Callable[[str, float], object]] = []

    def took(self, places: Iterable[tuple[str, int]], waited: float) -> None:
        """Count a call that starts, which takes so many places of each limit."""
        for limit, count in places:
            self.in_use[limit] += count
            self.waits.setdefault(limit, Histogram()).add(waited)
            for listener in self.listeners:
                listener(limit, waited)

    def gave_back(self, places: Iterable[tuple[str, int]]) -> None:
        """Count a call that has ended."""
        for limit, count in places:
            self.in_use[limit] -= count
