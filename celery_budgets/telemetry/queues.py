"""What waits for a lane at the broker, how fast it comes and goes: of all workers, as one value.

Made in the process that asks.

See also: :mod:`celery_budgets.telemetry.snapshots`, for the slots of the lanes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["LaneQueue"]


@dataclass(frozen=True, slots=True)
class LaneQueue:
    """The queue of one lane; ``None`` where it is unknown."""

    #: Messages at the broker that no worker has taken yet.
    backlog: int | None = None
    #: Seconds that the oldest of them has waited; 0 if there is none.
    oldest: float | None = None
    #: Whether ``oldest`` is estimated: RabbitMQ shows no message without delivering it.
    oldest_estimated: bool = False
    #: Messages per second that came, over the last minute.
    arrivals: float | None = None
    #: Calls per second that were started, over the last minute.
    departures: float | None = None

    @property
    def drain(self) -> float | None:
        """Seconds until it is empty at these rates; 0 if it is.

        ``None`` where it is unknown, or as many arrive as are started.
        """
        if self.backlog == 0:
            return 0.0
        if self.backlog is None or self.arrivals is None or self.departures is None:
            return None
        less = self.departures - self.arrivals
        return self.backlog / less if less > 0 else None

    @property
    def grows(self) -> bool:
        """Whether messages wait, and no fewer arrive than are started."""
        return bool(self.backlog) and self.arrivals is not None and self.drain is None

    @classmethod
    def of(cls, answers: Iterable[Mapping[str, Any]]) -> Self:
        """Return the queue in the *answers* of the workers of a lane (``backlog`` of each)."""
        listed = list(answers)
        known = [facts for facts in listed if facts.get("messages") is not None]
        departures = sum(facts.get("departures", 0.0) for facts in listed) if listed else None
        if not known:
            return cls(departures=departures)
        # All have it from the one who has read last, but may not have heard of it yet.
        last = min(known, key=lambda facts: facts["age"])
        trend = last["trend"]
        arrivals = None
        if trend is not None and departures is not None:
            # What was started meanwhile, and what is there more than before.
            arrivals = max(0.0, departures + trend)
        return cls(
            last["messages"], _oldest(known, last), bool(last["estimated"]), arrivals, departures
        )


def _oldest(known: Iterable[Mapping[str, Any]], last: Mapping[str, Any]) -> float | None:
    if not last["estimated"]:
        oldest: float | None = last["oldest"]
        return oldest
    # The worker that has started the latest message knows best.
    return min((facts["oldest"] for facts in known if facts["oldest"] is not None), default=None)
