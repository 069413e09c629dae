"""Statistics of the calls of one worker, and their merging over several workers.

Percentiles come from merged histograms, never from averaged percentiles.

Covers: counting, merging, and the JSON form that workers send.
Does not cover: who counts (:mod:`celery_budgets.worker.calls.tally`) and who asks
(:meth:`celery_budgets.Budgets.statistics`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery_budgets.telemetry.histogram import Histogram

__all__ = ["CallStatistics", "Statistics"]


@dataclass(slots=True)
class CallStatistics:
    """The outcomes and the usage of the calls of one task, one lane or all."""

    #: Calls by outcome.
    outcomes: Counter[str] = field(default_factory=Counter)
    #: Calls that went over their soft limit, however they ended.
    soft_limit_exceeded: int = 0
    #: Seconds from the start of the call to its end.
    duration: Histogram = field(default_factory=Histogram)
    #: Seconds from publishing (or the ETA) to the start.
    wait: Histogram = field(default_factory=Histogram)
    #: Highest RSS sampled during each call, bytes.
    rss_peak: Histogram = field(default_factory=Histogram)
    #: Deliveries that were not admitted, by reason; they were failed or requeued.
    rejections: Counter[str] = field(default_factory=Counter)
    #: Calls that ended without running their body: with the result of a twin, or replaced by a
    #: delayed message because a twin was running.
    twins: int = 0

    @property
    def total(self) -> int:
        """Calls that have ended."""
        return self.outcomes.total()

    @property
    def rss_peak_bytes(self) -> int | None:
        """Highest RSS sampled during any call, bytes; ``None`` before the first."""
        return int(self.rss_peak.maximum) if self.rss_peak.count else None

    @property
    def succeeded(self) -> int:
        """Calls whose body returned."""
        return self.outcomes["succeeded"]

    def copy(self) -> CallStatistics:
        """Return an independent copy."""
        return CallStatistics(
            self.outcomes.copy(),
            self.soft_limit_exceeded,
            self.duration.copy(),
            self.wait.copy(),
            self.rss_peak.copy(),
            self.rejections.copy(),
            self.twins,
        )

    def merge(self, other: CallStatistics) -> None:
        """Add the counts of *other*."""
        self.outcomes.update(other.outcomes)
        self.soft_limit_exceeded += other.soft_limit_exceeded
        self.duration.merge(other.duration)
        self.wait.merge(other.wait)
        self.rss_peak.merge(other.rss_peak)
        self.rejections.update(other.rejections)
        self.twins += other.twins

    def to_json(self) -> dict[str, Any]:
        """Return these statistics as JSON values."""
        return {
            "outcomes": dict(self.outcomes),
            "soft_limit_exceeded": self.soft_limit_exceeded,
            "duration": self.duration.to_json(),
            "wait": self.wait.to_json(),
            "rss_peak": self.rss_peak.to_json(),
            "rejections": dict(self.rejections),
            "twins": self.twins,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CallStatistics:
        """Return the statistics in the output of :meth:`to_json`."""
        return cls(
            Counter(data["outcomes"]),
            data["soft_limit_exceeded"],
            Histogram.from_json(data["duration"]),
            Histogram.from_json(data["wait"]),
            Histogram.from_json(data["rss_peak"]),
            Counter(data.get("rejections", {})),
            data.get("twins", 0),
        )


class Statistics:
    """Calls by lane and by task, of one worker or of many.

    Args:
        silent: Names of workers that were asked and did not answer.
    """

    def __init__(self, silent: Iterable[str] = ()) -> None:
        #: By (lane, task name).
        self.calls: dict[tuple[str, str], CallStatistics] = {}
        self.silent: tuple[str, ...] = tuple(silent)

    def of(self, lane: str, task: str) -> CallStatistics:
        """Return the statistics of *task* in *lane*; create them at its first call."""
        found = self.calls.get((lane, task))
        if found is None:
            found = self.calls[lane, task] = CallStatistics()
        return found

    def reject(self, lane: str, task: str, reason: str) -> None:
        """Count a call of *task* that was not admitted."""
        self.of(lane, task).rejections[reason] += 1

    def add(self, facts: Mapping[str, Any]) -> None:
        """Count a call that has ended.

        Args:
            facts: The fields of its log record (telemetry.logs.SCHEMA).
        """
        calls = self.of(facts["lane"], facts["task"])
        calls.outcomes[facts["outcome"]] += 1
        calls.soft_limit_exceeded += facts["soft_limit_exceeded"]
        if facts.get("twin"):
            calls.twins += 1
            return  # its duration and memory are not those of the body
        if facts["seconds"] is not None:
            calls.duration.add(facts["seconds"])
            calls.wait.add(facts["wait_seconds"])
        if facts["rss_peak_bytes"] is not None:
            calls.rss_peak.add(facts["rss_peak_bytes"])

    @property
    def lanes(self) -> dict[str, CallStatistics]:
        """Calls by lane."""
        return self._merged(0)

    @property
    def tasks(self) -> dict[str, CallStatistics]:
        """Calls by task name."""
        return self._merged(1)

    @property
    def total(self) -> CallStatistics:
        """All calls."""
        everything = CallStatistics()
        for calls in self.calls.values():
            everything.merge(calls)
        return everything

    def copy(self) -> Statistics:
        """Return an independent copy."""
        twin = Statistics(self.silent)
        # Over a tuple: garbage collection may end a block meanwhile, which adds an entry.
        twin.calls = {key: calls.copy() for key, calls in tuple(self.calls.items())}
        return twin

    def relabelled(self, label: Callable[[str], str]) -> Statistics:
        """Return a copy in which each task name is replaced by *label* of it."""
        copy = Statistics(self.silent)
        for (lane, task), calls in self.calls.items():
            copy.of(lane, label(task)).merge(calls)
        return copy

    def __repr__(self) -> str:
        ended = ", ".join(f"{lane}: {dict(calls.outcomes)}" for lane, calls in self.lanes.items())
        return f"<Statistics {{{ended}}} silent={list(self.silent)}>"

    def _merged(self, part: int) -> dict[str, CallStatistics]:
        merged: dict[str, CallStatistics] = {}
        for key, calls in sorted(self.calls.items()):
            merged.setdefault(key[part], CallStatistics()).merge(calls)
        return merged

    def merge(self, other: Statistics) -> None:
        """Add the counts of *other*."""
        for (lane, task), calls in other.calls.items():
            self.of(lane, task).merge(calls)

    def to_json(self) -> list[dict[str, Any]]:
        """Return these statistics as JSON values."""
        return [
            {"lane": lane, "task": task, **calls.to_json()}
            for (lane, task), calls in self.calls.items()
        ]

    @classmethod
    def from_json(cls, rows: Iterable[Mapping[str, Any]]) -> Statistics:
        """Return the statistics in the output of :meth:`to_json`."""
        statistics = cls()
        for row in rows:
            statistics.of(row["lane"], row["task"]).merge(CallStatistics.from_json(row))
        return statistics
