"""What a worker says of itself when it is asked.

In short for ``inspect stats``, which Flower prints on its worker page, and in full for
``inspect budgets``, which :mod:`celery_budgets.sending.remote_control` adds up over all workers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

from celery_budgets.config.settings import Settings
from celery_budgets.execution.memory import rss as memory
from celery_budgets.model.lanes import Lane
from celery_budgets.worker.calls import recent
from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.lanes.drift import Difference
from celery_budgets.worker.pool.size import slots_of
from celery_budgets.worker.startup.checks import capacity

__all__ = ["Report", "pool_pids"]


def pool_pids(worker: Any) -> list[int]:
    """Return the pids of the pool processes of *worker*; none where calls run in it itself."""
    processes = getattr(getattr(worker.pool, "_pool", None), "_pool", None) or ()
    return [process.pid for process in processes]


class Report:
    """Describes one worker: its lanes, what runs in them, its memory.

    Args:
        worker: The worker controller.
        settings: Those of its app.
        lanes: The lanes that it serves.
        roster: Its calls.
        pool: Name of its pool, such as ``"prefork"``.
        enforces: What that pool can enforce, in words, by limit.
    """

    def __init__(
        self,
        worker: Any,
        settings: Settings,
        lanes: Sequence[Lane],
        roster: Roster,
        pool: str,
        enforces: Mapping[str, str],
    ) -> None:
        self._worker = worker
        self._settings = settings
        self._lanes = lanes
        self._roster = roster
        self._about = {"pool": pool, "enforces": dict(enforces)}
        self._started_at = monotonic()

    def in_short(self) -> dict[str, Any]:
        """Return limits and counts; small, because Flower asks often."""
        statistics = self._roster.tally.statistics()
        return {
            **self._about,
            "capacity": capacity(self._settings.lanes, self._lanes),
            "slots": self._slots(),
            "gate": "open" if self._roster.gate is None or self._roster.gate.is_open else "paused",
            "abandoned_threads": self._roster.abandoned_threads,
            "drift": [difference.text for difference in self._drift()],
            "lanes": {lane.name: self._lane_in_short(lane) for lane in self._lanes},
            "calls": {name: dict(calls.outcomes) for name, calls in statistics.lanes.items()},
        }

    def _lane_in_short(self, lane: Lane) -> dict[str, Any]:
        return {
            "queue": lane.queue,
            "concurrency": self._roster.limit_of(lane),
            "paused": self._why_paused(lane),
            "active": self._roster.active[lane.name],
            "soft_time_limit": lane.budget.soft_time_limit,
            "hard_time_limit": lane.budget.hard_time_limit,
            "max_rss": lane.budget.max_rss,
            "rss_warning": lane.budget.rss_warning,
        }

    def in_full(self) -> dict[str, Any]:
        """Return the state of now: slots, memory in bytes, uptime in seconds."""
        roster = self._roster
        roster.look()
        return {
            **self._about,
            "pid": os.getpid(),
            "uptime": monotonic() - self._started_at,
            "capacity": roster.capacity,
            "slots": self._slots(),
            "lanes": self._lanes_in_full(),
            "memory": self._memory(),
            "processes": roster.processes.to_json() if roster.processes is not None else None,
            "abandoned_threads": roster.abandoned_threads,
            "drift": [difference.text for difference in self._drift()],
            "telemetry_failures": roster.telemetry_failures,
            "recent": {"seconds": recent.SECONDS, **roster.tally.recent.of("")},
        }

    def _slots(self) -> int:
        """Return how many calls the pool takes at once now: an operator may have changed it."""
        return slots_of(self._worker.pool) or self._roster.capacity

    def _lanes_in_full(self) -> dict[str, Any]:
        waiting, consumed = self._roster.waiting(), self._consumed()
        drift = self._drift()
        return {
            lane.name: {
                "queue": lane.queue,
                "consumed": lane.queue in consumed,
                "paused": self._why_paused(lane),
                "drift": [found.text for found in drift if found.queue in ("", lane.queue)],
                "active": self._roster.active[lane.name],
                "limit": self._roster.limit_of(lane),
                "recent": self._roster.tally.recent.of(lane.name),
                "waiting": waiting[lane.name],
                "rss_warning": lane.budget.rss_warning,
                "max_rss": lane.budget.max_rss,
                "hard_rss": lane.budget.hard_rss,
            }
            for lane in self._lanes
        }

    def _drift(self) -> list[Difference]:
        drift = self._roster.drift
        return list(drift.differences()) if drift is not None else []

    def _why_paused(self, lane: Lane) -> list[str]:
        consuming = self._roster.consuming
        return sorted(consuming.paused.get(lane.queue, ())) if consuming is not None else []

    def _consumed(self) -> set[str]:
        consumer = getattr(self._worker.consumer, "task_consumer", None)
        return {queue.name for queue in consumer.queues} if consumer is not None else set()

    def _memory(self) -> dict[str, Any]:
        sizes = {pid: memory.rss_of(pid) for pid in pool_pids(self._worker)}
        return {
            "worker_rss": memory.rss(),
            # JSON has no numbers as keys.
            "pool_rss": {str(pid): size for pid, size in sizes.items() if size is not None},
            "max_worker_rss": self._settings.max_worker_rss,
        }
