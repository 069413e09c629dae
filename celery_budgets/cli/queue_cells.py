"""The cells of the table of lanes that tell of a lane's queue: what is unknown is a "?".

Used in the operator's terminal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from celery_budgets.telemetry.objectives import Objective
from celery_budgets.telemetry.queues import LaneQueue
from celery_budgets.units import format_duration

__all__ = ["backlog", "drain", "kept", "oldest", "sparkline"]

_UNKNOWN = "?"
_LEVELS = "▁▂▃▄▅▆▇█"


def backlog(queue: LaneQueue) -> str:
    """Return the number of messages at the broker."""
    return _UNKNOWN if queue.backlog is None else str(queue.backlog)


def oldest(queue: LaneQueue) -> str:
    """Return how long the oldest has waited: "~" before an estimate, "-" if there is none."""
    if queue.backlog == 0:
        return "-"
    if queue.oldest is None:
        return _UNKNOWN
    return ("~" if queue.oldest_estimated else "") + _rounded(queue.oldest)


def drain(queue: LaneQueue) -> str:
    """Return the time until it is empty: "grows" if as many arrive as are started."""
    if queue.backlog == 0:
        return "-"
    if queue.grows:
        return "grows"
    return _UNKNOWN if queue.drain is None else _rounded(queue.drain)


def kept(objective: Objective | None) -> str:
    """Return the share of the last hour's calls that started within the wait that is promised."""
    if objective is None:
        return ""
    if objective.hour is None:
        return "-"
    # Never 100 % while one call was late.
    return f"{math.floor(1000 * objective.hour) / 10:g} % in {format_duration(objective.seconds)}"


def sparkline(history: Sequence[int | None]) -> str:
    """Return one character per number, the highest of them full; a blank where it is unknown."""
    highest = max((number for number in history if number is not None), default=0)
    return "".join(_level(number, highest) for number in history)


def _level(number: int | None, highest: int) -> str:
    if number is None:
        return " "
    return _LEVELS[-(-number * (len(_LEVELS) - 1) // highest) if highest else 0]


def _rounded(seconds: float) -> str:
    """Return whole seconds below a minute, and whole minutes and hours above."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return format_duration(round(seconds) if seconds >= 1 else round(seconds, 2))
