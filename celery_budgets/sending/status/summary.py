"""One lane over all workers: what the page shows in a row, and behind it.

Percentiles come from merged histograms of the workers. Made in the process that asks.

See also: :mod:`celery_budgets.sending.status.overview`, for a row per lane and worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from celery_budgets.sending.status.alerts import Alert, alerts_of, is_paused
from celery_budgets.telemetry.queues import LaneQueue
from celery_budgets.telemetry.snapshots import Slots, WorkerMemory, objectives_of, queues_of
from celery_budgets.telemetry.statistics import CallStatistics, Statistics

__all__ = ["MOST_RUNNING", "MOST_TASKS", "summaries"]

#: Most running calls and tasks of one lane that are listed.
MOST_RUNNING = 50
MOST_TASKS = 50

Answers = Mapping[str, Mapping[str, Any]]


def summaries(answers: Answers, lanes: Iterable[str]) -> list[dict[str, Any]]:
    """Return one entry for each lane as JSON values, in seconds and bytes; ``None`` is unknown.

    Args:
        answers: The answers of the workers to ``inspect budgets``.
        lanes: Names of the app's lanes, in their order; those that no worker serves are there too.
    """
    served = {lane for answer in answers.values() for lane in answer.get("lanes", {})}
    order = list(lanes)
    statistics = Statistics()
    for answer in answers.values():
        statistics.merge(Statistics.from_json(answer.get("statistics", ())))
    by_lane, queues, objectives = statistics.lanes, queues_of(answers), objectives_of(answers)
    found = []
    for lane in [*order, *sorted(served - {*order})]:
        calls, objective = by_lane.get(lane, CallStatistics()), objectives.get(lane)
        queue = queues.get(lane, LaneQueue())
        found.append(
            {
                "lane": lane,
                **_now(lane, answers),
                **_ended(calls),
                "hour": dict(
                    sum((Counter(f.get("hour", {})) for f in _of(lane, answers)), Counter())
                ),
                **asdict(queue),
                "drain": queue.drain,
                "slo": asdict(objective) if objective is not None else None,
                "tasks": _tasks(lane, statistics),
                "running": _running(lane, answers),
            }
        )
    return found


def _of(lane: str, answers: Answers) -> Iterator[Mapping[str, Any]]:
    """Yield what each worker that serves *lane* tells of it."""
    for answer in answers.values():
        if lane in answer.get("lanes", {}):
            yield answer["lanes"][lane]


def _last_hour(lane: str, answers: Answers) -> dict[str, int]:
    """Return the calls of the last hour by their outcome."""
    counted: Counter[str] = Counter()
    for facts in _of(lane, answers):
        counted.update(facts.get("hour", {}))
    return dict(counted)


def _now(lane: str, answers: Answers) -> dict[str, Any]:
    """Return the slots, the memory and the state of *lane* over its workers."""
    facts = list(_of(lane, answers))
    slots = [Slots(each["active"], each["limit"], each["waiting"]) for each in facts]
    total = sum(slots, Slots())
    workers = {name: answer for name, answer in answers.items() if lane in answer.get("lanes", {})}
    memories = [WorkerMemory.of(answer) for answer in workers.values()]
    # The worker that is nearest to its level speaks for the lane.
    fullest = max(memories, key=lambda each: each.largest_bytes / each.levels[lane].max_rss,
                  default=None)  # fmt: skip
    levels = fullest.levels[lane] if fullest is not None else None
    return {
        "workers": sorted(workers),
        "active": total.active,
        "limit": total.limit,
        "waiting": total.waiting,
        # Slots of other lanes that calls of this one have taken.
        "borrowed": sum(max(0, each.active - each.limit) for each in slots),
        "fleet": next((each["fleet"] for each in facts if each.get("fleet")), None),
        "paused": sum(map(is_paused, facts)),
        "gates_paused": sum(memory.gate != "open" for memory in memories),
        "rss": fullest.largest_bytes if fullest is not None else None,
        "rss_warning": levels.rss_warning if levels is not None else None,
        "max_rss": levels.max_rss if levels is not None else None,
        "hard_rss": levels.hard_rss if levels is not None else None,
        "alerts": [asdict(alert) for alert in _alerts(lane, workers)],
    }


def _alerts(lane: str, workers: Answers) -> list[Alert]:
    """Return each alert of *lane* once, however many of its workers have it."""
    found = dict.fromkeys(alert for answer in workers.values() for alert in alerts_of(lane, answer))
    severity = {"critical": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda alert: severity[alert.level])


def _ended(calls: CallStatistics) -> dict[str, Any]:
    """Return the calls that have ended since their workers started."""
    duration = calls.duration
    return {
        "calls": calls.total,
        "outcomes": dict(calls.outcomes),
        "p50": duration.quantile(0.5),
        "p95": duration.quantile(0.95),
        "p99": duration.quantile(0.99),
        "wait_p95": calls.wait.quantile(0.95),
        "rss_peak": calls.rss_peak_bytes,
    }


def _tasks(lane: str, statistics: Statistics) -> list[dict[str, Any]]:
    """Return the tasks of *lane*, those with the most calls first."""
    found = [
        {"task": task, **_ended(calls)}
        for (name, task), calls in statistics.calls.items()
        if name == lane
    ]
    return sorted(found, key=lambda each: (-each["calls"], each["task"]))[:MOST_TASKS]


def _running(lane: str, answers: Answers) -> list[dict[str, Any]]:
    """Return the running calls of *lane*, the longest first, each with its worker."""
    found = [
        {**call, "worker": name}
        for name, answer in answers.items()
        for call in answer.get("lanes", {}).get(lane, {}).get("running", ())
    ]
    return sorted(found, key=lambda call: -call["seconds"])[:MOST_RUNNING]
