"""Alerts derived from a worker's state, at the same levels as the Prometheus rules.

An event such as a killed call alerts for five minutes, as in the rules (``recent`` of a worker's
answer; a worker of an older version sends none, and so has no such alerts).

See also: ``examples/observability/rules.yml``, which evaluates the same over time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from celery_budgets.telemetry.snapshots import LevelsOfMemory, WorkerMemory
from celery_budgets.units import format_duration, format_size

__all__ = ["CRITICAL_SHARE", "Alert", "alerts_of", "is_paused"]

#: Part of ``max_rss`` above which memory is critical.
CRITICAL_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Alert:
    """One condition that an operator should look at."""

    level: Literal["critical", "warning", "info"]
    text: str


def alerts_of(lane: str, answer: Mapping[str, Any]) -> tuple[Alert, ...]:
    """Return the alerts for *lane* on one worker, the most severe first.

    Args:
        lane: Name of the lane.
        answer: The worker's answer to ``inspect budgets``.
    """
    memory = WorkerMemory.of(answer)
    found = [
        *_of_memory(memory, memory.levels[lane]),
        *_of_calls(answer["lanes"][lane].get("recent", {}), _lately(answer)),
        *_of_processes(answer.get("processes") or {}),
        *_of_operator(answer["lanes"][lane]),
        *_of_worker(answer),
    ]
    return tuple(sorted(found, key=lambda alert: _SEVERITY.index(alert.level)))


def is_paused(lane: Mapping[str, Any]) -> bool:
    """Return whether an operator has paused *lane*, an entry of a worker's answer."""
    return "operator" in lane.get("paused", ())


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


def _lately(answer: Mapping[str, Any]) -> str:
    """Return the period that a worker counts as recent: ``in the last 5 min``."""
    seconds = answer.get("recent", {}).get("seconds", 0)
    whole = seconds and seconds % 60 == 0
    return f"in the last {f'{seconds / 60:g} min' if whole else format_duration(seconds)}"


def _of_calls(recent: Mapping[str, int], lately: str) -> Iterator[Alert]:
    hard, memory = recent.get("hard_time_limit"), recent.get("memory_limit")
    if hard:
        yield Alert("critical", f"{hard} killed at the hard time limit {lately}")
    if memory:
        yield Alert("critical", f"{memory} killed for memory {lately}")
    recovered = recent.get("slots_recovered")
    if recovered:
        yield Alert(
            "critical", f"{_counted(recovered, 'slot')} taken back from lost calls {lately}"
        )
    redelivered = recent.get("redelivered")
    if redelivered:
        yield Alert("warning", f"{redelivered} redelivered while they ran {lately}")
    rejected = recent.get("rejected")
    if rejected:
        yield Alert("info", f"{rejected} not admitted {lately}")


def _of_processes(processes: Mapping[str, Any]) -> Iterator[Alert]:
    missing, size = processes.get("missing", 0), processes.get("size", 0)
    if not missing:
        return
    within = format_duration(processes["alive_timeout"])
    why = f"not up within worker_proc_alive_timeout ({within})"
    if processes["up"] == 0:
        yield Alert("critical", f"no pool process takes calls: {why}")
    else:
        yield Alert("warning", f"{missing} of {_counted(size, 'pool process')} missing: {why}")


def _of_operator(lane: Mapping[str, Any]) -> Iterator[Alert]:
    if is_paused(lane):
        yield Alert("warning", "paused by an operator")
    for difference in lane.get("drift", ()):
        yield Alert("warning", f"drift: {difference}")


def _of_worker(answer: Mapping[str, Any]) -> Iterator[Alert]:
    away = answer.get("limits_away")
    if away is not None:
        silent = f"Redis has not answered for {format_duration(max(1, round(away)))}"
        yield Alert("critical", f"limits over the fleet unknown: {silent}")
    abandoned = answer.get("abandoned_threads", 0)
    if abandoned:
        yield Alert("warning", f"{_counted(abandoned, 'thread')} past the hard limit")
    failures = answer.get("recent", {}).get("telemetry_failures", 0)
    if failures:
        yield Alert("warning", f"{_counted(failures, 'telemetry failure')} {_lately(answer)}")


def _counted(number: int, thing: str) -> str:
    ending = "es" if thing.endswith("s") else "s"
    return f"{number} {thing}{'' if number == 1 else ending}"
