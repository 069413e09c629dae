"""A mergeable histogram, with quantiles within 1 % of the exact ones.

Buckets grow by 2 %, so the middle of a bucket is at most 1 % away from any value in it. Only
buckets with values are kept: 1 microsecond to 1 day needs at most about 1,300.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Histogram"]

_GROWTH = 1.02
_LOG_GROWTH = math.log(_GROWTH)
#: All values up to this one share the lowest bucket.
_SMALLEST = 1e-6


class Histogram:
    """Counts values of zero or more, such as seconds or bytes."""

    __slots__ = ("buckets", "count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.minimum = math.inf
        self.maximum = 0.0

    def add(self, value: float) -> None:
        """Count *value*."""
        index = math.ceil(math.log(value) / _LOG_GROWTH) if value > _SMALLEST else _LOWEST
        self.buckets[index] = self.buckets.get(index, 0) + 1
        self.count += 1
        self.total += value
        if value < self.minimum:
            self.minimum = value
        if value > self.maximum:
            self.maximum = value

    @property
    def mean(self) -> float | None:
        """The average; ``None`` without values."""
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """Return the value that *share* (0 to 1) of all values do not exceed; ``None`` if empty."""
        if not self.count:
            return None
        rank = max(1, math.ceil(share * self.count))
        for index in sorted(self.buckets):
            rank -= self.buckets[index]
            if rank <= 0:
                break
        middle = math.exp((index - 0.5) * _LOG_GROWTH)
        return min(max(middle, self.minimum), self.maximum)

    def cumulative(self, bounds: Iterable[float]) -> list[int]:
        """Return for each of the rising *bounds* how many values do not exceed it, within 1 %."""
        counts: list[int] = []
        below, indices = 0, sorted(self.buckets)
        for bound in bounds:
            while indices and math.exp((indices[0] - 0.5) * _LOG_GROWTH) <= bound:
                below += self.buckets[indices.pop(0)]
            counts.append(below)
        return counts

    def copy(self) -> Histogram:
        """Return an independent copy."""
        twin = Histogram()
        twin.buckets = self.buckets.copy()
        twin.count, twin.total = self.count, self.total
        twin.minimum, twin.maximum = self.minimum, self.maximum
        return twin

    def merge(self, other: Histogram) -> None:
        """Add the values of *other*."""
        for index, count in other.buckets.items():
            self.buckets[index] = self.buckets.get(index, 0) + count
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def __repr__(self) -> str:
        if not self.count:
            return "<Histogram count=0>"
        return (
            f"<Histogram count={self.count} mean={self.mean:.4g} p50={self.quantile(0.5):.4g} "
            f"p95={self.quantile(0.95):.4g} max={self.maximum:.4g}>"
        )

    def to_json(self) -> dict[str, Any]:
        """Return this histogram as JSON values."""
        if not self.count:
            return {}
        return {
            "buckets": {str(index): count for index, count in self.buckets.items()},
            "total": self.total,
            "min": self.minimum,
            "max": self.maximum,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Histogram:
        """Return the histogram in the output of :meth:`to_json`."""
        histogram = cls()
        if data:
            histogram.buckets = {int(index): count for index, count in data["buckets"].items()}
            histogram.count = sum(histogram.buckets.values())
            histogram.total, histogram.minimum = data["total"], data["min"]
            histogram.maximum = data["max"]
        return histogram


_LOWEST = math.ceil(math.log(_SMALLEST) / _LOG_GROWTH)
