"""What is measured, and how: every way in turn, medians with their spread, ratios in pairs.

Ratios are what counts. Two measurements of one round follow each other closely, so whatever
else the machine does in the meantime touches both.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any, TypeVar

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """A bound on a median: of the values, or of the ratio to another way."""

    bound: float
    #: At least the bound; ``False``: at most.
    at_least: bool = False
    #: The way that the ratio is to; ``None``: the bound is on the value.
    to: str | None = None

    def __str__(self) -> str:
        of = f"x {self.to}" if self.to else ""
        return f"{'≥' if self.at_least else '≤'} {self.bound:g} {of}".strip()

    def met(self, value: float) -> bool:
        """Say whether *value* keeps it."""
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Figure:
    """One thing that was measured: samples by way, and what they are compared with."""

    name: str
    unit: str
    samples: Mapping[str, Sequence[float]]
    #: The way that others are compared with, by way; a way without one has no ratio.
    against: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, Target] = field(default_factory=dict)
    #: Worth a picture?
    plotted: bool = False

    def middle(self, way: str) -> float:
        """Return the median of *way*."""
        return median(self.samples[way])

    def spread(self, way: str) -> tuple[float, float]:
        """Return the first and third quartile of *way*; of few samples the extremes."""
        return spread(self.samples[way])

    def ratios(self, way: str) -> list[float]:
        """Return the ratio to what *way* is compared with, round by round."""
        if way not in self.against:
            return []
        pairs = zip(self.samples[way], self.samples[self.against[way]], strict=False)
        return [mine / theirs for mine, theirs in pairs if theirs]

    def judge(self, way: str) -> bool | None:
        """Say whether *way* keeps its target; ``None`` where it has none, or no ratio."""
        target = self.targets.get(way)
        ratios = self.ratios(way)
        if target is None or (target.to and not ratios):
            return None
        return target.met(median(ratios) if target.to else self.middle(way))

    def to_json(self) -> dict[str, Any]:
        """Return this figure with its samples in values that JSON has."""
        return asdict(self) | {"medians": {way: self.middle(way) for way in self.samples}}


@dataclass(frozen=True)
class Finding:
    """Something that was seen and is no number: what each way did, in words."""

    name: str
    seen: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return this finding in values that JSON has."""
        return asdict(self)


def spread(samples: Sequence[float]) -> tuple[float, float]:
    """Return the first and third quartile of *samples*; of fewer than four, the extremes."""
    if len(samples) < 4:
        return min(samples), max(samples)
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return low, high


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the value that *share* (0 to 1) of *samples* do not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def in_turn(ways: Mapping[K, Callable[[], T]], rounds: int) -> dict[K, list[T]]:
    """Measure each way once per round, A B A B, and return the measurements by way."""
    measured: dict[K, list[T]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, measure in ways.items():
            gc.collect()
            measured[way].append(measure())
    return measured


def percentiles(
    name: str, waits: Mapping[str, Sequence[Sequence[float]]], **more: Any
) -> list[Figure]:
    """Return the p50 and p99 of latencies, in milliseconds: one sample per round.

    Args:
        name: What waited.
        waits: Seconds, by way and round.
        more: As in :class:`Figure`.
    """
    return [
        Figure(
            f"{name}, p{share * 100:g}", "ms",
            {
                way: [percentile(one, share) * 1000 for one in rounds if one]
                for way, rounds in waits.items()
            },
            **more,
        )
        for share in (0.5, 0.99)
    ]  # fmt: skip
