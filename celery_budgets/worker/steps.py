"""The bootstep that joins this package to a worker; the work is in plain objects.

See also: :mod:`celery_budgets.worker.checks`, :mod:`celery_budgets.worker.deadlines`,
:mod:`celery_budgets.worker.threads` and :mod:`celery_budgets.worker.roster`.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

from celery import bootsteps

from celery_budgets.lanes import Lane
from celery_budgets.process.interrupt import (
    GreenletInterrupt,
    Interrupt,
    MainThreadInterrupt,
    ProcessInterrupt,
    ThreadInterrupt,
)
from celery_budgets.process.recorder import FlightReader
from celery_budgets.process.watchdog import install
from celery_budgets.settings import Settings, settings_of
from celery_budgets.task import BudgetedTask
from celery_budgets.telemetry.logs import print_json_lines
from celery_budgets.worker.checks import capacity, check_worker, pool_name
from celery_budgets.worker.deadlines import Deadlines
from celery_budgets.worker.meters import Meters
from celery_budgets.worker.roster import roster_of
from celery_budgets.worker.threads import AbandonedThreads

__all__ = ["BudgetsStep"]

logger = logging.getLogger(__name__)


class BudgetsStep(bootsteps.StartStopStep):
    """Checks the worker, prepares its process for its pool, and answers ``inspect stats``."""

    label = "Budgets"
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, autoscale: Any = None, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self.settings: Settings = settings_of(worker.app)
        self.roster = roster_of(worker.app)
        self.pool = pool_name(worker.pool_cls)
        self.lanes: list[Lane] = check_worker(worker, self.settings, autoscale)
        self.roster.capacity = worker.concurrency
        self.interrupt = self._interrupt(worker)
        if self.pool == "prefork":
            # Before the pool forks, so that each process finds the folder in its environment.
            self.roster.flights = FlightReader()
        else:
            install(self.interrupt)
        for task in worker.app.tasks.values():
            if isinstance(task, BudgetedTask):
                _settle_acknowledgement(task)

    def _interrupt(self, worker: Any) -> Interrupt:
        if self.pool == "threads":
            most = self.settings.max_abandoned_threads
            threads = AbandonedThreads(worker, self.roster, most)
            return ThreadInterrupt(threads.abandon, threads.returned)
        kinds = {
            "prefork": ProcessInterrupt,
            "gevent": GreenletInterrupt,
            "solo": MainThreadInterrupt,
        }
        return kinds.get(self.pool, Interrupt)()

    def create(self, worker: Any) -> BudgetsStep:
        """Return the object that the worker starts and stops: this step itself."""
        return self

    def start(self, worker: Any) -> None:
        """Stand in front of the pool's timers, and say what this pool enforces."""
        asynpool = getattr(worker.pool, "_pool", None)
        if self.roster.flights is not None and hasattr(asynpool, "_on_hard_timeout"):
            Deadlines(asynpool, worker.hub, self.roster.flights).attach()
        self._start_telemetry(worker)
        enforces = self.interrupt.enforces
        logger.info(
            "budgets.worker_started lanes=%s concurrency=%s pool=%s soft=%r hard=%r memory=%r",
            ",".join(lane.name for lane in self.lanes) or "none", worker.concurrency, self.pool,
            enforces["soft"], enforces["hard"], enforces["memory"],
        )  # fmt: skip

    def _start_telemetry(self, worker: Any) -> None:
        if self.settings.json_logs:
            print_json_lines()

        def pool_pids() -> list[int]:
            processes = getattr(getattr(worker.pool, "_pool", None), "_pool", None) or ()
            return [process.pid for process in processes]

        about = (version("celery-budgets"), worker.hostname, self.pool)
        Meters(self.roster, self.lanes, about, pool_pids).start(self.settings)

    def stop(self, worker: Any) -> None:
        """Nothing to do before the pool has stopped."""

    def terminate(self, worker: Any) -> None:
        """Nothing to do before the pool has stopped."""

    def info(self, worker: Any) -> dict[str, Any]:
        """Return what `inspect stats`, and so Flower's worker page, shows."""
        lanes = {
            lane.name: {
                "queue": lane.queue,
                "concurrency": lane.concurrency,
                "active": self.roster.active[lane.name],
                "soft_time_limit": lane.budget.soft_time_limit,
                "hard_time_limit": lane.budget.hard_time_limit,
                "max_rss": lane.budget.max_rss,
                "rss_warning": lane.budget.rss_warning,
            }
            for lane in self.lanes
        }
        return {
            "budgets": {
                "pool": self.pool,
                "enforces": dict(self.interrupt.enforces),
                "capacity": capacity(self.settings.lanes, self.lanes),
                "abandoned_threads": self.roster.abandoned_threads,
                "lanes": lanes,
                "calls": {
                    name: dict(calls.outcomes)
                    for name, calls in self.roster.statistics.lanes.items()
                },
            }
        }


def _settle_acknowledgement(task: BudgetedTask) -> None:
    """Acknowledge late where a call may run twice, early where it may not.

    Before the consumer builds its strategies: they keep the value (create_request_cls).
    """
    if "acks_late" in type(task).__dict__ and task.acks_late is not None:
        return  # the program says it itself
    idempotent = task.idempotent
    type(task).acks_late = task.home().idempotent if idempotent is None else idempotent
