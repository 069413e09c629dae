"""Snapshots of the current slots and memory of workers, as frozen values.

Each is built from the answers of workers to ``inspect budgets``. See also:
:mod:`celery_budgets.telemetry.statistics`, for calls that have ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from celery_budgets.telemetry.objectives import Objective
from celery_budgets.telemetry.queues import LaneQueue

__all__ = [
    "Concurrency", "LevelsOfMemory", "Memory", "Slots", "WorkerMemory", "objectives_of",
    "queues_of",
]  # fmt: skip

Answers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots of one lane, on one worker or on all."""

    #: Calls that run now.
    active: int = 0
    #: Calls that may run at once.
    limit: int = 0
    #: Calls that a worker has received and not started.
    waiting: int = 0

    def __add__(self, other: Slots) -> Slots:
        return Slots(
            self.active + other.active, self.limit + other.limit, self.waiting + other.waiting
        )


@dataclass(frozen=True, slots=True)
class Concurrency:
    """The slots of all workers."""

    #: By worker, then by lane.
    workers: Mapping[str, Mapping[str, Slots]]
    #: Calls that each worker may run at once over all its lanes.
    capacities: Mapping[str, int]
    #: Workers that were asked and did not answer.
    silent: tuple[str, ...] = ()
    #: What waits at the broker, by lane.
    queues: Mapping[str, LaneQueue] = field(default_factory=dict)
    #: How far the lanes keep what they promise, by lane; without those that promise nothing.
    objectives: Mapping[str, Objective] = field(default_factory=dict)

    @classmethod
    def of(cls, answers: Answers, silent: tuple[str, ...] = ()) -> Self:
        """Return the slots, the queues and the objectives in *answers*."""
        workers = {
            name: {
                lane: Slots(facts["active"], facts["limit"], facts["waiting"])
                for lane, facts in answer.get("lanes", {}).items()
            }
            for name, answer in answers.items()
        }
        capacities = {name: answer.get("capacity", 0) for name, answer in answers.items()}
        return cls(workers, capacities, silent, queues_of(answers), objectives_of(answers))

    @property
    def lanes(self) -> dict[str, Slots]:
        """Slots by lane, added up over the workers."""
        lanes: dict[str, Slots] = {}
        for by_lane in self.workers.values():
            for lane, slots in by_lane.items():
                lanes[lane] = lanes.get(lane, Slots()) + slots
        return lanes

    @property
    def total(self) -> Slots:
        """All slots; the limit is what the workers may run at once over all lanes."""
        every = sum(self.lanes.values(), Slots())
        return Slots(every.active, sum(self.capacities.values()), every.waiting)

    def load(self, lane: str) -> float | None:
        """Return (active + waiting + backlog) / slots of *lane*; ``None`` where it is unknown."""
        slots, backlog = self.lanes.get(lane, Slots()), self.queues.get(lane, LaneQueue()).backlog
        if backlog is None or not slots.limit:
            return None
        return (slots.active + slots.waiting + backlog) / slots.limit


def queues_of(answers: Answers) -> dict[str, LaneQueue]:
    """Return what waits at the broker, by lane, as the workers in *answers* know it."""
    return {lane: LaneQueue.of(told) for lane, told in _by_lane(answers, "backlog").items()}


def objectives_of(answers: Answers) -> dict[str, Objective]:
    """Return how far the lanes in *answers* keep what they promise, of those that do."""
    found = {lane: Objective.of(told) for lane, told in _by_lane(answers, "slo").items()}
    return {lane: objective for lane, objective in found.items() if objective is not None}


def _by_lane(answers: Answers, what: str) -> dict[str, list[Mapping[str, Any]]]:
    by_lane: dict[str, list[Mapping[str, Any]]] = {}
    for answer in answers.values():
        for lane, facts in answer.get("lanes", {}).items():
            # A worker of an earlier version does not tell.
            by_lane.setdefault(lane, []).append(facts.get(what) or {})
    return by_lane


@dataclass(frozen=True, slots=True)
class LevelsOfMemory:
    """The memory levels of one lane, bytes of RSS of the process that runs its calls."""

    rss_warning: int
    max_rss: int
    #: Above this a running call is killed.
    hard_rss: int


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """The memory of one worker, bytes."""

    #: RSS of the worker main process.
    rss_bytes: int
    #: RSS of each pool process, by pid; empty where calls run in the worker itself.
    pool_rss_bytes: Mapping[int, int]
    #: By lane that the worker serves.
    levels: Mapping[str, LevelsOfMemory]
    #: The worker with its pool processes, as its gate measures it (PSS, or by the cgroup);
    #: ``None`` if it is not measured.
    whole_bytes: int | None = None
    #: Limit of ``whole_bytes``; ``None`` if it is not measured and none is configured.
    max_worker_rss: int | None = None
    #: "open", or "paused" while the worker admits no calls.
    gate: str = "open"

    @property
    def largest_bytes(self) -> int:
        """RSS of the largest process that runs calls, which is compared with the levels."""
        return max(self.pool_rss_bytes.values(), default=self.rss_bytes)

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """Return the memory in one worker's *answer*."""
        # A worker without a memory guard has no gate, and admits every call.
        memory, gate = answer.get("memory", {}), answer.get("gate") or {}
        whole = gate.get("gauges", {}).get("max_worker_rss", {})
        return cls(
            rss_bytes=memory.get("worker_rss", 0),
            pool_rss_bytes={int(pid): size for pid, size in memory.get("pool_rss", {}).items()},
            levels={
                lane: LevelsOfMemory(facts["rss_warning"], facts["max_rss"], facts["hard_rss"])
                for lane, facts in answer.get("lanes", {}).items()
            },
            whole_bytes=whole.get("used"),
            max_worker_rss=whole.get("limit", memory.get("max_worker_rss")),
            gate=gate.get("state", "open"),
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of all workers."""

    #: By worker.
    workers: Mapping[str, WorkerMemory]
    #: Workers that were asked and did not answer.
    silent: tuple[str, ...] = ()

    @classmethod
    def of(cls, answers: Answers, silent: tuple[str, ...] = ()) -> Self:
        """Return the memory in *answers*."""
        return cls({name: WorkerMemory.of(answer) for name, answer in answers.items()}, silent)
