"""Decides what a worker that stops does with each of its running calls.

A stop with a known grace ends all calls that do not end in time by themselves. What will not, and
may run again, is better stopped at once, so that another worker starts it now.

Pure functions, used in the worker main process.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from math import inf
from typing import NamedTuple, Protocol

__all__ = ["Decision", "History", "RunningCall", "Verdict", "decide", "rest"]


class History(Protocol):
    """How long earlier calls of a task ran, seconds (telemetry.histogram.Histogram)."""

    count: int

    def cumulative(self, bounds: Iterable[float]) -> list[int]:
        """Return for each of the rising *bounds* how many calls ran no longer."""
        ...

    def quantile(self, share: float) -> float | None:
        """Return how long that *share* of the calls ran at most."""
        ...


class RunningCall(NamedTuple):
    """A call that runs while its worker stops."""

    #: Seconds since it began.
    age: float
    #: Seconds until its limits; the soft one may have passed.
    soft_left: float
    hard_left: float
    #: Whether it may run again: its message is not acknowledged.
    may_run_again: bool
    #: Whether its body has ended, and its result is on its way.
    ended: bool = False


class Verdict(StrEnum):
    """What becomes of a running call."""

    WAIT = "gets the grace"
    HAND_BACK = "handed back"  #: stopped at once, for another worker
    LEAVE = "left until the end"  #: it will not end in time, and must not run twice


class Decision(NamedTuple):
    """A verdict, and the chance by which it was reached."""

    verdict: Verdict
    #: From 0 to 1: that the call ends in time by itself.
    chance: float


def decide(call: RunningCall, history: History, left: float, cutoff: float) -> Decision:
    """Return what becomes of *call*.

    Args:
        call: The call.
        history: How long earlier calls of its task ran in this worker.
        left: Seconds until the worker is killed.
        cutoff: Below this chance (0 to 1) it does not get the time that is left.
    """
    chance = 1.0 if call.ended else _chance(call, history, left)
    if chance >= cutoff:
        return Decision(Verdict.WAIT, chance)
    return Decision(Verdict.HAND_BACK if call.may_run_again else Verdict.LEAVE, chance)


def _chance(call: RunningCall, history: History, left: float) -> float:
    """Return the share of the earlier calls, of those that ran as long, that had ended by then."""
    by_now, by_then = history.cumulative([call.age, call.age + left])
    longer = history.count - by_now
    if longer:
        return (by_then - by_now) / longer
    # No earlier call has run for so long, or there was none: by its limits.
    return 0.0 if max(call.soft_left, 0.0) > left else 1.0


def rest(call: RunningCall, history: History, share: float) -> float:
    """Return within how many seconds *call* ends with a probability of *share* (0 to 1)."""
    (by_now,) = history.cumulative([call.age])
    longer = history.count - by_now
    if call.ended:
        return 0.0
    end = history.quantile((by_now + share * longer) / history.count) if longer else None
    return max(0.0, min(end - call.age if end is not None else inf, call.hard_left))
