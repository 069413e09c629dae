"""The bootstep that connects this package to a worker; the work is in plain objects.

See also: :mod:`celery_budgets.worker.startup.checks`,
:mod:`celery_budgets.worker.pool.time_limits`, :mod:`celery_budgets.worker.pool.abandoned_threads`
and :mod:`celery_budgets.worker.calls.roster`.
"""

from __future__ import annotations

import logging
import threading
from functools import partial
from importlib.metadata import version
from itertools import takewhile
from time import monotonic
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals

from celery_budgets.blocks.ledger import ledger_of
from celery_budgets.config.settings import Settings, settings_of
from celery_budgets.execution.limits.forks import end_by_default
from celery_budgets.execution.limits.greenlet_interrupt import GreenletInterrupt
from celery_budgets.execution.limits.interrupts import (
    Interrupt,
    ProcessInterrupt,
    ThreadInterrupt,
)
from celery_budgets.execution.limits.solo_interrupt import MainThreadInterrupt
from celery_budgets.execution.limits.watchdog import install
from celery_budgets.execution.stacks import writer
from celery_budgets.model import failures
from celery_budgets.model.lanes import Lane
from celery_budgets.tasks import run as running  # noqa: F401  before processes are forked, for all of them
from celery_budgets.tasks.mapped import MappingTask
from celery_budgets.tasks.task import BudgetedTask
from celery_budgets.telemetry.logs import print_json_lines
from celery_budgets.units import KIB
from celery_budgets.worker.calls.settling import contain
from celery_budgets.worker.pool.abandoned_threads import AbandonedThreads
from celery_budgets.worker.pool.children import Children
from celery_budgets.worker.pool.drain import Drain
from celery_budgets.worker.pool.joining import settle_while_joining
from celery_budgets.worker.pool.processes import PoolProcesses
from celery_budgets.worker.pool.size import pool_name, pool_pids
from celery_budgets.worker.pool.started_calls import StartedCalls
from celery_budgets.worker.pool.time_limits import TimeLimitTimer
from celery_budgets.worker.remote.metrics_source import MetricsSource
from celery_budgets.worker.remote.report import Report
from celery_budgets.worker.runtime import WorkerRuntime, runtime_of
from celery_budgets.worker.startup.checks import check_worker
from celery_budgets.worker.startup.hangup import stop_though_nobody_reads, stop_warmly_at_hangup
from celery_budgets.worker.startup.readiness import tell_when_ready

if TYPE_CHECKING:
    from celery_budgets.execution.flight.reader import FlightReader

__all__ = ["BudgetsStep"]

logger = logging.getLogger(__name__)


class BudgetsStep(bootsteps.StartStopStep):
    """Checks the worker, prepares it before its pool starts, and answers ``inspect stats``."""

    label = "Budgets"
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, autoscale: Any = None, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self.settings: Settings = settings_of(worker.app)
        self._asked_to_stop_at: float | None = None
        self._children: Children | None = None
        self.pool = pool_name(worker.pool_cls)
        self.lanes: list[Lane] = check_worker(worker, self.settings, autoscale)
        if self.settings.json_logs:
            # Before the pool forks, so that its processes inherit the format.
            print_json_lines()
        if self.pool == "prefork":
            self._let_fat_processes_leave(worker)
        for task in worker.app.tasks.values():
            if isinstance(task, BudgetedTask):
                type(task).join_mixins()
                _settle_acknowledgement(task)

    def _let_fat_processes_leave(self, worker: Any) -> None:
        """Make billiard check the size of each pool process after a call.

        See :mod:`celery_budgets.execution.memory.recycling`.

        billiard checks only if ``max_memory_per_child`` (KiB) is set. A program's own value
        stays in the configuration, where pool processes find it.
        """
        theirs = worker.max_memory_per_child
        if theirs:
            worker.app.conf.worker_max_memory_per_child = theirs
        elif self.settings.memory_guard:
            budgets = [lane.budget for lane in self.lanes]
            for task in worker.app.tasks.values():
                if isinstance(task, BudgetedTask) and not isinstance(task, MappingTask):
                    budgets.append(task.budget_in(task.home()))
            # The lowest, since billiard logs it; a process returns 1 KiB, or more than its limit.
            worker.max_memory_per_child = min((b.max_rss for b in budgets), default=KIB) // KIB

    def create(self, worker: Any) -> BudgetsStep:
        """Return the object that the worker starts and stops: this step itself."""
        return self

    def start(self, worker: Any) -> None:
        """Wrap methods of the pool, which has started, and log which limits it enforces."""
        runtime = runtime_of(worker.app)
        # As in celery.contrib.testing.worker.start_worker.
        runtime.embedded = threading.current_thread() is not threading.main_thread()
        if not runtime.embedded:
            stop_though_nobody_reads()
            stop_warmly_at_hangup(worker)
            tell_when_ready(worker)
            signals.worker_shutting_down.connect(self._note_stop, sender=worker.hostname)
        failures.listen(runtime.roster.count_failure)
        interrupt = self._interrupt(worker, runtime)
        if runtime.flights is None:
            end_by_default()
            contain(worker.pool)
            install(interrupt)
            writer.install(self.settings.stacks, in_pool_process=False)
            ledger_of(worker.app).worker = runtime.roster.tally.count
        else:
            self._join_processes(worker, runtime, runtime.flights)
        self.report = runtime.report = Report(worker, runtime, interrupt.enforces)
        about = (version("celery-budgets"), worker.hostname, self.pool)
        MetricsSource(runtime, about, partial(pool_pids, worker.pool)).start(self.settings)
        logger.info(
            "budgets.worker_started lanes=%s concurrency=%s pool=%s soft=%r hard=%r memory=%r",
            ",".join(lane.name for lane in self.lanes) or "none", worker.concurrency, self.pool,
            *(interrupt.enforces[what] for what in ("soft", "hard", "memory")),
        )  # fmt: skip

    def _interrupt(self, worker: Any, runtime: WorkerRuntime) -> Interrupt:
        if self.pool == "threads":
            threads = runtime.threads = AbandonedThreads(
                worker, runtime.roster, self.settings.max_abandoned_threads,
                embedded=runtime.embedded,
            )  # fmt: skip
            return ThreadInterrupt(threads.abandon, threads.returned)
        kinds = {
            "prefork": ProcessInterrupt,
            "gevent": GreenletInterrupt,
            "solo": MainThreadInterrupt,
        }
        return kinds.get(self.pool, Interrupt)()

    def _join_processes(self, worker: Any, runtime: WorkerRuntime, flights: FlightReader) -> None:
        asynpool = worker.pool._pool
        if hasattr(asynpool, "_on_hard_timeout"):
            runtime.time_limits = TimeLimitTimer(
                asynpool, worker.hub, flights, runtime.black_box.take
            )
            runtime.time_limits.attach()
            StartedCalls(worker.pool, worker.hub).attach()
            runtime.processes = PoolProcesses(asynpool)
        if hasattr(asynpool, "_timeout_handler"):
            self._children = Children(worker.pool, flights)
            self._children.attach()

    def stop(self, worker: Any) -> None:
        """Hand back what will not end in time, before the pool waits for its calls."""
        settle_while_joining(worker)
        grace = self.settings.stop_grace or worker.app.conf.worker_soft_shutdown_timeout
        if self._asked_to_stop_at is None or not grace:
            return
        runtime = runtime_of(worker.app)
        drain = Drain(
            runtime.roster, runtime.running_flight_of, self._children, self.settings.drain_cutoff
        )
        drain.begin(self._asked_to_stop_at + grace)

    def _note_stop(self, sig: str = "", how: str = "", **_: Any) -> None:
        """Note when somebody has asked for a warm stop who will kill the worker later."""
        if (sig, how) == ("SIGTERM", "Warm") and self._asked_to_stop_at is None:
            self._asked_to_stop_at = monotonic()

    def terminate(self, worker: Any) -> None:
        """Nothing to do before the pool has stopped."""

    def info(self, worker: Any) -> dict[str, Any]:
        """Return the data for `inspect stats`, which Flower's worker page shows."""
        return {"budgets": self.report.in_short()}


def _settle_acknowledgement(task: BudgetedTask) -> None:
    """Acknowledge late if a call may run twice, early if it may not.

    Before the consumer builds its strategies, which cache the value (create_request_cls).
    """
    classes = takewhile(lambda cls: cls is not BudgetedTask, type(task).__mro__)
    if any("acks_late" in cls.__dict__ for cls in classes):
        return  # the program has set it
    idempotent = task.idempotent
    type(task).acks_late = task.home().idempotent if idempotent is None else idempotent
