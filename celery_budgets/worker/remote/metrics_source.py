"""Collects the metrics of a worker from its roster and the sizes of its processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celery_budgets.config.settings import Settings
from celery_budgets.errors import ConfigurationError
from celery_budgets.execution.memory import rss as memory
from celery_budgets.telemetry import metrics
from celery_budgets.telemetry.histogram import Histogram
from celery_budgets.telemetry.metrics import Sample
from celery_budgets.telemetry.statistics import CallStatistics
from celery_budgets.worker.runtime import WorkerRuntime

__all__ = ["MetricsSource"]

logger = logging.getLogger(__name__)

#: Task names that get labels of their own; all further ones share "other".
MOST_TASKS = 200
_KILLS = ("hard_time_limit", "memory_limit", "worker_lost")
#: The reasons of the gate for rejections: the settings of its gauges.
_REASONS = ("max_rss", "max_worker_rss")


class MetricsSource:
    """Reads the samples of one worker, and connects them to the configured exporters.

    Args:
        runtime: The runtime of the worker.
        about: Its (version, name, pool), for ``build_info``.
        pool_pids: Returns the pids of its pool processes; empty if calls run in the worker.
    """

    def __init__(
        self,
        runtime: WorkerRuntime,
        about: tuple[str, str, str],
        pool_pids: Callable[[], list[int]],
    ) -> None:
        self._runtime = runtime
        self._roster = runtime.roster
        self._lanes = runtime.served
        self._about = about
        self._pool_pids = pool_pids
        self._tasks: set[str] = set()
        #: The port that serves Prometheus; ``None`` if none does.
        self.port: int | None = None

    def start(self, settings: Settings) -> None:
        """Start the exporters that the settings and the program configure; never raise."""
        record = metrics.export_to_meter(lambda: list(self.read()))
        if record is not None:
            self._roster.tally.listeners.append(_recorder(record, self.label))
            if self._runtime.leases is not None:
                self._runtime.leases.counts.listeners.append(
                    lambda limit, seconds: record("limit_wait_seconds", (limit,), seconds)
                )
        if settings.metrics_port is None:
            return
        try:
            self.port = metrics.serve(
                settings.metrics_port, lambda: list(self.read()), settings.metrics_host
            )
        except (ConfigurationError, OSError) as exc:
            self._roster.count_failure()
            logger.error(
                "budgets.metrics_not_served port=%s: %s; give each worker of this host a port "
                "of its own (CELERY_BUDGETS_METRICS_PORT)", settings.metrics_port, exc,
            )  # fmt: skip
        else:
            logger.info(
                "budgets.metrics_served url=http://%s:%s/metrics", settings.metrics_host, self.port
            )

    def label(self, task: str) -> str:
        """Return the label of *task*: its name, or "other" once there are too many."""
        if task not in self._tasks:
            if len(self._tasks) >= MOST_TASKS:
                return "other"
            self._tasks.add(task)
        return task

    def read(self) -> Iterator[Sample]:
        """Yield all current samples."""
        yield from self._calls()
        yield from self._slots()
        yield from self._limits()
        yield from self._memory()
        yield from self._gate()
        yield from self._processes()
        yield Sample("abandoned_threads", (), self._runtime.abandoned_threads)
        yield Sample("slots_recovered", (), self._roster.slots_recovered)
        yield Sample("telemetry_failures", (), self._runtime.telemetry_failures)
        yield Sample("build_info", self._about, 1.0)

    def _calls(self) -> Iterator[Sample]:
        statistics = self._roster.tally.statistics().relabelled(self.label)
        for (lane, task), calls in statistics.calls.items():
            for outcome, count in calls.outcomes.items():
                yield Sample("calls", (lane, task, outcome), count)
            yield Sample("call_duration_seconds", (lane, task), calls.duration)
            yield Sample("queue_wait_seconds", (lane, task), calls.wait)
            yield Sample("call_memory_peak_bytes", (lane, task), calls.rss_peak)
        yield from self._lanes_ended(statistics.lanes)

    def _lanes_ended(self, ended: Mapping[str, CallStatistics]) -> Iterator[Sample]:
        """Yield counts by lane, from 0: Prometheus sees no increase if a counter begins at 1."""
        for lane in {lane.name for lane in self._lanes} | set(ended):
            calls = ended.get(lane) or CallStatistics()
            yield Sample("time_limits", (lane, "soft"), calls.soft_limit_exceeded)
            yield Sample("time_limits", (lane, "hard"), calls.outcomes["hard_time_limit"])
            for outcome in _KILLS:
                yield Sample("kills", (lane, outcome), calls.outcomes[outcome])
            for reason in {*_REASONS, *calls.rejections}:
                yield Sample("rejections", (lane, reason), calls.rejections[reason])

    def _slots(self) -> Iterator[Sample]:
        roster = self._roster
        waiting = roster.waiting()
        for lane in self._lanes:
            yield Sample("lane_active", (lane.name,), roster.active[lane.name])
            yield Sample("lane_limit", (lane.name,), self._runtime.slots.limit_of(lane))
            yield Sample("lane_waiting", (lane.name,), waiting[lane.name])
            yield Sample("redelivered", (lane.name,), roster.redelivered[lane.name])
            yield from self._queue(lane.name)
        yield Sample("global_active", (), roster.active.total())
        yield Sample("global_limit", (), self._runtime.slots.capacity)

    def _limits(self) -> Iterator[Sample]:
        """Yield what calls here take of limits over the fleet, from 0."""
        settings, leases = self._runtime.settings, self._runtime.leases
        for limit in settings.limits:
            yield Sample("limit_throttled", (limit,), self._roster.throttled[limit])
        if leases is None:
            return
        most = leases.of_lanes(self._lanes)
        most |= {name: each.concurrency for name, each in settings.limits.items() if not each.key}
        waiting, counts = self._runtime.slots.waiting_for_limits(), leases.counts
        for limit in {*most, *settings.limits}:
            yield Sample("limit_in_use", (limit,), counts.in_use[limit])
            yield Sample("limit_waiting", (limit,), waiting[limit])
            yield Sample("limit_wait_seconds", (limit,), counts.waits.get(limit, Histogram()))
        for limit, places in most.items():
            if places is not None:
                yield Sample("limit_limit", (limit,), places)

    def _queue(self, lane: str) -> Iterator[Sample]:
        """Yield what waits at the broker, and who waited too long; unknown is nothing, not 0."""
        backlog, load = self._runtime.backlog.of(lane), self._runtime.peers.load_of(lane)
        if backlog.messages is not None:
            yield Sample("lane_backlog", (lane,), backlog.messages)
        if backlog.oldest is not None:
            yield Sample("lane_oldest_seconds", (lane,), backlog.oldest)
        if load is not None:
            yield Sample("lane_load", (lane,), load)
        objective = self._runtime.objectives.lanes.get(lane)
        if objective is not None:
            yield Sample("lane_slo_seconds", (lane,), objective.seconds)
            yield Sample("lane_slo_calls", (lane, "true"), objective.within)
            yield Sample("lane_slo_calls", (lane, "false"), objective.late)

    def _memory(self) -> Iterator[Sample]:
        yield Sample("memory_rss_bytes", ("worker",), memory.rss_of(os.getpid()) or 0)
        sizes = [memory.rss_of(pid) or 0 for pid in self._pool_pids()]
        if sizes:
            yield Sample("memory_rss_bytes", ("pool",), max(sizes))
        for lane in self._lanes:
            yield Sample("memory_limit_bytes", (lane.name, "warning"), lane.budget.rss_warning)
            yield Sample("memory_limit_bytes", (lane.name, "max"), lane.budget.max_rss)
            yield Sample("memory_limit_bytes", (lane.name, "hard"), lane.budget.hard_rss)

    def _processes(self) -> Iterator[Sample]:
        processes = self._runtime.processes
        if processes is not None:
            yield Sample("pool_processes", ("up",), processes.up())
            yield Sample("pool_processes", ("missing",), processes.missing())
            yield Sample("pool_process_starts", (), processes.starts)

    def _gate(self) -> Iterator[Sample]:
        gate = self._runtime.gate if self._runtime.settings.memory_guard else None
        for name in ("open", "paused"):
            is_now = name == ("open" if gate is None or gate.is_open else "paused")
            yield Sample("gate_state", (name,), float(is_now))
        for reading in gate.last if gate is not None else ():
            if reading.gauge.name == "max_worker_rss":
                yield Sample("memory_worker_bytes", (), reading.used)
                yield Sample("memory_worker_limit_bytes", (), reading.gauge.limit)


def _recorder(
    record: Callable[[str, Any, Any], None], label: Callable[[str], str]
) -> Callable[[Mapping[str, Any]], None]:
    def listen(facts: Mapping[str, Any]) -> None:
        labels = (facts["lane"], label(facts["task"]))
        if facts["seconds"] is not None:
            record("call_duration_seconds", labels, facts["seconds"])
            record("queue_wait_seconds", labels, facts["wait_seconds"])
        if facts["rss_peak_bytes"] is not None:
            record("call_memory_peak_bytes", labels, facts["rss_peak_bytes"])

    return listen
