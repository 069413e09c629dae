"""The report of a worker on itself.

In short for ``inspect stats``, which Flower shows on its worker page, and in full for
``inspect budgets``, which :mod:`celery_budgets.sending.remote_control` collects from all workers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from time import monotonic
from typing import Any

from celery_budgets.execution.memory import rss as memory
from celery_budgets.model.lanes import Lane
from celery_budgets.worker.backlog.history import History, Moment
from celery_budgets.worker.calls import recent
from celery_budgets.worker.lanes.drift import Difference
from celery_budgets.worker.pool.size import pool_pids, slots_of
from celery_budgets.worker.remote.running import running_calls
from celery_budgets.worker.runtime import WorkerRuntime
from celery_budgets.worker.startup.checks import capacity

__all__ = ["Report"]


class Report:
    """Describes one worker: its lanes, what runs in them, its memory.

    Args:
        worker: The worker controller.
        runtime: The runtime of the worker.
        enforces: How its pool enforces each limit, as text.
    """

    def __init__(self, worker: Any, runtime: WorkerRuntime, enforces: Mapping[str, str]) -> None:
        self._worker = worker
        self._runtime = runtime
        self._settings = runtime.settings
        self._lanes = runtime.served
        self._roster = runtime.roster
        self._about = {"pool": runtime.pool_kind, "enforces": dict(enforces)}
        self._started_at = monotonic()
        #: The last two hours.
        self.history = History(
            (lane.name for lane in self._lanes), lambda: self._roster.tally.statistics().lanes,
            self._moment, self._largest,
        )  # fmt: skip

    def in_short(self) -> dict[str, Any]:
        """Return limits and counts; small, because Flower polls often."""
        statistics = self._roster.tally.statistics()
        return {
            **self._about,
            "capacity": capacity(self._settings.lanes, self._lanes),
            "slots": self._slots(),
            "gate": "open" if self._runtime.gate.is_open else "paused",
            "abandoned_threads": self._runtime.abandoned_threads,
            "drift": [difference.text for difference in self._drift()],
            "lanes": {lane.name: self._lane_in_short(lane) for lane in self._lanes},
            "calls": {name: dict(calls.outcomes) for name, calls in statistics.lanes.items()},
        }

    def _lane_in_short(self, lane: Lane) -> dict[str, Any]:
        return {
            "queue": lane.queue,
            "concurrency": self._runtime.slots.limit_of(lane),
            "paused": self._why_paused(lane),
            "active": self._roster.active[lane.name],
            "soft_time_limit": lane.budget.soft_time_limit,
            "hard_time_limit": lane.budget.hard_time_limit,
            "max_rss": lane.budget.max_rss,
            "rss_warning": lane.budget.rss_warning,
        }

    def in_full(self) -> dict[str, Any]:
        """Return the current state: slots, memory in bytes, uptime in seconds."""
        runtime, tally = self._runtime, self._roster.tally
        runtime.look()
        return {
            **self._about,
            "pid": os.getpid(),
            "uptime": monotonic() - self._started_at,
            "capacity": runtime.slots.capacity,
            "slots": self._slots(),
            "lanes": self._lanes_in_full(),
            "memory": self._memory(),
            "processes": runtime.processes.to_json() if runtime.processes is not None else None,
            "abandoned_threads": runtime.abandoned_threads,
            "drift": [difference.text for difference in self._drift()],
            "telemetry_failures": runtime.telemetry_failures,
            "limits_away": runtime.leases.away if runtime.leases is not None else None,
            "recent": {"seconds": recent.SECONDS, **tally.recent.of("")},
            "kills": runtime.kills.noted,
        }

    def _slots(self) -> int:
        """Return how many calls the pool runs at once now, which an operator may have changed."""
        return slots_of(self._worker.pool) or int(self._runtime.slots.capacity)

    def _lanes_in_full(self) -> dict[str, Any]:
        waiting, consumed = self._roster.waiting(), self._consumed()
        drift, running = self._drift(), running_calls(self._runtime)
        return {
            lane.name: {
                "queue": lane.queue,
                "consumed": lane.queue in consumed,
                "paused": self._why_paused(lane),
                "drift": [found.text for found in drift if found.queue in ("", lane.queue)],
                "active": self._roster.active[lane.name],
                "limit": self._runtime.slots.limit_of(lane),
                "fleet": lane.fleet,
                "recent": self._roster.tally.recent.of(lane.name),
                "hour": self.history.hour(lane.name),
                "running": running[lane.name],
                "waiting": waiting[lane.name],
                "backlog": self._backlog(lane),
                "slo": self._runtime.objectives.to_json(lane.name),
                "rss_warning": lane.budget.rss_warning,
                "max_rss": lane.budget.max_rss,
                "hard_rss": lane.budget.hard_rss,
            }
            for lane in self._lanes
        }

    def _backlog(self, lane: Lane) -> dict[str, Any]:
        return {
            **self._runtime.backlog.to_json(lane.name),
            "departures": self._runtime.flow.departures_per_second(lane.name),
        }

    def _drift(self) -> list[Difference]:
        return list(self._runtime.drift.differences())

    def _why_paused(self, lane: Lane) -> list[str]:
        return sorted(self._runtime.queue_pauses.paused.get(lane.queue, ()))

    def _consumed(self) -> set[str]:
        consumer = getattr(self._worker.consumer, "task_consumer", None)
        return {queue.name for queue in consumer.queues} if consumer is not None else set()

    def _memory(self) -> dict[str, Any]:
        sizes = {pid: memory.rss_of(pid) for pid in pool_pids(self._worker.pool)}
        return {
            "worker_rss": memory.rss(),
            # Keys in JSON are text.
            "pool_rss": {str(pid): size for pid, size in sizes.items() if size is not None},
            "max_worker_rss": self._settings.max_worker_rss,
        }

    def _moment(self, lane: str) -> Moment:
        """Return the state of *lane* for the history, without asking anybody."""
        runtime = self._runtime
        served = runtime.settings.lanes[lane]
        return Moment(
            self._roster.active[lane], runtime.slots.limit_of(served),
            runtime.backlog.of(lane).messages, bool(runtime.queue_pauses.paused.get(served.queue)),
        )  # fmt: skip

    def _largest(self) -> int:
        pids = pool_pids(self._worker.pool)
        return max((memory.rss_of(pid) or 0 for pid in pids), default=0) or memory.rss()
