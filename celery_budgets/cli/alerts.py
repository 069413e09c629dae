"""What of a worker's state wants looking at: the same levels as the Prometheus rules.

See also: ``examples/observability/rules.yml``, which watches over time what this sees once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from celery_budgets.telemetry.snapshots import LevelsOfMemory, WorkerMemory
from celery_budgets.telemetry.statistics import CallStatistics
from celery_budgets.units import format_size

__all__ = ["CRITICAL_SHARE", "Alert", "alerts_of"]

#: Part of ``max_rss`` above which memory is critical.
CRITICAL_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing to look at."""

    level: Literal["critical", "warning", "info"]
    text: str


def alerts_of(lane: str, answer: Mapping[str, Any], calls: CallStatistics) -> tuple[Alert, ...]:
    """Return what wants looking at in *lane* of one worker, the worst first.

    Args:
        lane: Name of the lane.
        answer: The worker's, to ``inspect budgets``.
        calls: Those of the lane that have ended.
    """
    memory = WorkerMemory.of(answer)
    found = [
        *_of_memory(memory, memory.levels[lane]),
        *_of_calls(calls),
        *_of_drift(answer, answer["lanes"][lane], paused=memory.gate != "open"),
        *_of_worker(answer),
    ]
    return tuple(sorted(found, key=lambda alert: _SEVERITY.index(alert.level)))


_SEVERITY = ("critical", "warning", "info")


def _of_memory(memory: WorkerMemory, levels: LevelsOfMemory) -> Iterator[Alert]:
    used, limit = memory.largest_bytes, levels.max_rss
    if used > CRITICAL_SHARE * limit:
        yield Alert("critical", f"RSS {format_size(used)} above 90 % of {format_size(limit)}")
    elif used > levels.rss_warning:
        level = format_size(levels.rss_warning)
        yield Alert("warning", f"RSS {format_size(used)} above the warning level, {level}")
    if memory.gate != "open":
        yield Alert("critical", f"gate {memory.gate}: no call is admitted")


def _of_calls(calls: CallStatistics) -> Iterator[Alert]:
    hard = calls.outcomes["hard_time_limit"]
    if hard:
        yield Alert("critical", f"{hard} killed at the hard time limit")
    memory = calls.outcomes["memory_limit"]
    if memory:
        yield Alert("critical", f"{memory} killed for memory")
    rejected = calls.rejections.total()
    if rejected:
        yield Alert("info", f"{rejected} not admitted")


def _of_drift(
    answer: Mapping[str, Any], lane: Mapping[str, Any], *, paused: bool
) -> Iterator[Alert]:
    """Say where somebody has changed at run time what the lane was started with."""
    capacity, slots = answer.get("capacity"), answer.get("slots")
    if capacity is not None and slots is not None and slots != capacity:
        yield Alert("warning", f"drift: {_counted(slots, 'slot')}, started with {capacity}")
    # A closed gate itself takes no messages from the queue.
    if not paused and not lane.get("consumed", True):
        yield Alert("warning", f"drift: queue {lane['queue']} is not consumed")


def _of_worker(answer: Mapping[str, Any]) -> Iterator[Alert]:
    abandoned = answer.get("abandoned_threads", 0)
    if abandoned:
        yield Alert("warning", f"{_counted(abandoned, 'thread')} past the hard limit")
    failures = answer.get("telemetry_failures", 0)
    if failures:
        yield Alert("warning", _counted(failures, "telemetry failure"))


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
