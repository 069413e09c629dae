"""The bootstep that joins the gate and the second line for memory to a worker's consumer.

See also: :mod:`celery_budgets.worker.memory.gate`, :mod:`celery_budgets.worker.memory.admission`
and :mod:`celery_budgets.worker.memory.pool_guard`, which do the work.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

from celery import bootsteps
from celery.worker import state

from celery_budgets.config.settings import Settings, settings_of
from celery_budgets.execution.memory import rss as memory
from celery_budgets.execution.memory.cgroup import physical_memory, tightest_cgroup
from celery_budgets.execution.memory.pss import ProcessTree
from celery_budgets.model.lanes import Lane
from celery_budgets.worker.calls.roster import roster_of
from celery_budgets.worker.memory.admission import Admission
from celery_budgets.worker.memory.gate import TICK, Gate, Gauge
from celery_budgets.worker.memory.pool_guard import PoolGuard
from celery_budgets.worker.startup.checks import lanes_of_queues, pool_name

__all__ = ["EXIT_CODE", "GateStep"]

logger = logging.getLogger(__name__)

#: Exit code of a worker that left to give its memory back (``EX_OSERR``).
EXIT_CODE = 71
#: Share of the cgroup's limit, or of the machine's memory, that a worker may take by default.
_DEFAULT_SHARE = 0.9


class GateStep(bootsteps.StartStopStep):
    """Looks at the memory of the worker once per :data:`.gate.TICK`."""

    label = "Budgets gate"
    requires = ("celery_budgets.worker.bootsteps.lanes_step:LanesStep",)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._settings = settings_of(c.app)
        self._consumer = c
        pool = pool_name(c.controller.pool_cls)
        self._prefork = pool == "prefork"
        self._timer_entry: Any = None
        lanes = lanes_of_queues(self._settings.lanes, c.app.amqp.queues.consume_from)
        roster = roster_of(c.app)
        assert roster.consuming is not None  # the step that this one requires has set it
        gauges = _gauges(self._settings, lanes, shared=not self._prefork)
        self.gate = Gate(gauges, self._settings.max_pause)
        self.admission = Admission(
            c, roster.consuming, self.gate, roster,
            fail=self._settings.rejection == "fail", renew=self._renew,
            keeps_calls=pool == "threads",
        )  # fmt: skip
        self.pool_memory: PoolGuard | None = None
        if self._prefork and roster.flights is not None:
            self.pool_memory = PoolGuard(self._pool_pids, roster.flights, roster)
        guarded = self._settings.memory_guard
        roster.gate = self.gate if guarded else None
        roster.admission = self.admission if guarded else None

    def start(self, c: Any) -> None:
        """Arm the timer; again after each reconnect, when Celery may have cancelled it."""
        self._disarm(c)
        self.admission.lose_connection()
        if self._settings.memory_guard:
            self._timer_entry = c.timer.call_repeatedly(TICK, self._tick)

    def stop(self, c: Any) -> None:
        """Disarm the timer; what is held goes back to the broker with its channel."""
        self._disarm(c)

    def _disarm(self, c: Any) -> None:
        if self._timer_entry is not None:
            c.timer.cancel(self._timer_entry)
            self._timer_entry = None

    def _tick(self) -> None:
        try:
            if self.pool_memory is not None:
                self.pool_memory.look()
            decision = self.gate.decide(self.gate.observe(), self.admission.running())
        except Exception:
            logger.exception("budgets.gate_failed: the gate stays as it is")
            return
        # Some pools have a timer thread; only the event loop may touch the consumer.
        self._consumer.call_soon(self.admission.act, decision)

    def _pool_pids(self) -> list[int]:
        pool = getattr(self._consumer.pool, "_pool", None)
        return [process.pid for process in getattr(pool, "_pool", ()) if process.pid]

    def _renew(self) -> None:
        """Give back the memory that no call uses: with the processes that hold it."""
        self.gate.fresh = True
        if self._prefork:
            logger.warning(
                "budgets.processes_replaced count=%s: nothing ran for %g s, and the worker is "
                "above its limit", len(self._pool_pids()), self.gate.max_pause,
            )  # fmt: skip
            for process in list(self._consumer.pool._pool._pool):
                # As billiard.pool.Pool.shrink does with idle ones; the pool starts new ones.
                process.terminate_controlled()
        elif not state.should_stop and not roster_of(self._consumer.app).embedded:
            logger.critical(
                "budgets.worker_leaves exit_code=%s: nothing ran for %g s, and the worker is "
                "above its limit", EXIT_CODE, self.gate.max_pause,
            )  # fmt: skip
            state.should_stop = EXIT_CODE


def _gauges(settings: Settings, lanes: list[Lane], *, shared: bool) -> Iterator[Gauge]:
    """Yield what the gate looks at.

    Args:
        settings: The settings of the app.
        lanes: The lanes that the worker serves.
        shared: Do calls share the process of the worker?
    """
    yield _worker_gauge(settings)
    if shared and lanes:
        tightest = min((lane.budget for lane in lanes), key=lambda budget: budget.max_rss)
        yield Gauge("max_rss", tightest.max_rss, tightest.rss_warning, memory.rss)


def _worker_gauge(settings: Settings) -> Gauge:
    limit, group = settings.max_worker_rss, None
    if limit is None:
        group = tightest_cgroup()
        limit = int(_DEFAULT_SHARE * (group.limit if group is not None else physical_memory()))
    resume = int(limit * settings.budget.rss_warning / settings.budget.max_rss)
    if group is not None:
        # Whoever takes it: at the group's limit the kernel kills any of its processes.
        return Gauge("max_worker_rss", limit, resume, lambda: group.use() or 0)
    tree = ProcessTree(os.getpid())
    return Gauge("max_worker_rss", limit, resume, lambda: tree.size(resume))
