"""The memory gate: decides whether a worker admits calls.

Three steps, once per :data:`TICK`: observe (read the gauges), decide (below), act
(:mod:`celery_budgets.worker.memory.admission`). It closes above a limit and opens at a lower
level, so that a worker at its limit does not oscillate.

Does not cover: the memory of a single call (:mod:`celery_budgets.execution.limits.watchdog`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from time import monotonic, time
from typing import Any

from celery_budgets.units import format_duration, format_size

__all__ = ["TICK", "Decision", "Gate", "Gauge", "Reading"]

logger = logging.getLogger(__name__)

#: Seconds between two readings of the memory of a worker.
TICK = 1.0


@dataclass(frozen=True, slots=True)
class Gauge:
    """One measured quantity and its two levels, bytes."""

    #: The setting it belongs to: ``max_worker_rss``, or ``max_rss`` if calls share a process.
    name: str
    #: Above this the gate closes.
    limit: int
    #: At or below this it opens again.
    resume: int
    read: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading of a gauge, bytes."""

    gauge: Gauge
    used: int


class Decision(Enum):
    """The decision after a reading."""

    KEEP = auto()  #: change nothing
    CLOSE = auto()  #: admit no more calls
    OPEN = auto()  #: admit calls again
    LET_ONE = auto()  #: stay closed, but admit one call, since waiting does not help
    RENEW = auto()  #: replace the processes that hold the memory


class Gate:
    """Decides, independently of Celery.

    A closed gate waits for the running calls. If no call has run for *max_pause* and memory is
    still above the level, the processes are replaced, since they may hold it. If that does not
    help, or no call has run in them yet, the memory is not theirs: then calls are admitted one
    at a time, so that the worker does not stay blocked for ever.

    Args:
        gauges: The gauges to read.
        max_pause: Longest time closed while no call runs, seconds.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        gauges: Iterable[Gauge],
        max_pause: float = 60.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.gauges = tuple(gauges)
        self.max_pause = max_pause
        self._clock = clock
        #: The reading that closed the gate; ``None`` while it is open.
        self.by: Reading | None = None
        #: Epoch seconds of the last change.
        self.since = time()
        #: Whether no call has run in the processes since they were started.
        self.fresh = True
        #: The last readings.
        self.last: tuple[Reading, ...] = ()
        self._idle_at: float | None = None
        self._renewed_at = 0.0
        self._nothing_helps = False

    @property
    def is_open(self) -> bool:
        """Whether calls are admitted."""
        return self.by is None

    def observe(self) -> tuple[Reading, ...]:
        """Read every gauge."""
        self.last = tuple(Reading(gauge, gauge.read()) for gauge in self.gauges)
        return self.last

    def decide(self, readings: tuple[Reading, ...], running: int) -> Decision:
        """Return the decision.

        Args:
            readings: The result of :meth:`observe`.
            running: Number of running calls.
        """
        if self.by is None:
            over = next((r for r in readings if r.used > r.gauge.limit), None)
            return Decision.KEEP if over is None else self._close(over)
        above = next((r for r in readings if r.used > r.gauge.resume), None)
        if above is None:
            return self._open(readings)
        return self._stay_closed(running)

    def _close(self, over: Reading) -> Decision:
        self.by, self.since = over, time()
        self._idle_at, self._nothing_helps = None, False
        logger.warning(
            "budgets.gate_closed by=%s used=%s limit=%s resume=%s: no call is admitted",
            over.gauge.name, format_size(over.used), format_size(over.gauge.limit),
            format_size(over.gauge.resume),
        )  # fmt: skip
        return Decision.CLOSE

    def _open(self, readings: tuple[Reading, ...]) -> Decision:
        assert self.by is not None
        gauge, paused = self.by.gauge, time() - self.since
        used = next((r.used for r in readings if r.gauge is gauge), 0)
        self.by, self.since = None, time()
        logger.warning(
            "budgets.gate_opened by=%s used=%s resume=%s after=%s",
            gauge.name, format_size(used), format_size(gauge.resume),
            format_duration(round(paused, 1)),
        )  # fmt: skip
        return Decision.OPEN

    def _stay_closed(self, running: int) -> Decision:
        if running:
            self._idle_at = None
            return Decision.KEEP
        now = self._clock()
        if self._idle_at is None:
            self._idle_at = now
        since = self._renewed_at if self._nothing_helps else self._idle_at
        if now - since >= self.max_pause:
            self._nothing_helps, self._renewed_at = True, now
            return Decision.LET_ONE if self.fresh else Decision.RENEW
        return Decision.LET_ONE if self._nothing_helps else Decision.KEEP

    def to_json(self) -> dict[str, Any]:
        """Return the state of the gate, sizes in bytes: open, or paused since when and by what."""
        state: dict[str, Any] = {
            "state": "open" if self.is_open else "paused",
            "since": self.since,
            "gauges": {
                r.gauge.name: {"used": r.used, "limit": r.gauge.limit, "resume": r.gauge.resume}
                for r in self.last
            },
        }
        if self.by is not None:
            gauge = self.by.gauge
            state["by"] = {"name": gauge.name, "used": self.by.used, "limit": gauge.limit}
        return state
