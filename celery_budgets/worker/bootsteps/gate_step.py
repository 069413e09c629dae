"""The bootstep that connects the memory gate and the pool guard to a worker's consumer.

See also: :mod:`celery_budgets.worker.memory.gate`, :mod:`celery_budgets.worker.memory.admission`
and :mod:`celery_budgets.worker.memory.pool_guard`, which do the work.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps

from celery_budgets.worker.memory.gate import TICK
from celery_budgets.worker.memory.pool_guard import PoolGuard
from celery_budgets.worker.pool.size import pool_pids
from celery_budgets.worker.runtime import runtime_of

__all__ = ["GateStep"]

logger = logging.getLogger(__name__)


class GateStep(bootsteps.StartStopStep):
    """Checks the memory of the worker once per :data:`.gate.TICK`."""

    label = "Budgets gate"
    requires = ("celery_budgets.worker.bootsteps.lanes_step:LanesStep",)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        runtime = runtime_of(c.app)
        self._consumer = c
        self._guarded = runtime.settings.memory_guard
        self._gate, self._admission = runtime.gate, runtime.admission
        self._timer_entry: Any = None
        self._pool_guard: PoolGuard | None = None
        if runtime.flights is not None:
            self._pool_guard = PoolGuard(
                self._pool_pids,
                runtime.flights,
                runtime.roster,
                take_stack=runtime.black_box.take,
            )

    def start(self, c: Any) -> None:
        """Start the timer; again after each reconnect, when Celery may have cancelled it."""
        self._disarm(c)
        self._admission.lose_connection()
        if self._guarded:
            self._timer_entry = c.timer.call_repeatedly(TICK, self._tick)

    def stop(self, c: Any) -> None:
        """Stop the timer; held deliveries return to the broker when their channel closes."""
        self._disarm(c)

    def _disarm(self, c: Any) -> None:
        if self._timer_entry is not None:
            c.timer.cancel(self._timer_entry)
            self._timer_entry = None

    def _pool_pids(self) -> list[int]:
        return pool_pids(self._consumer.pool)

    def _tick(self) -> None:
        try:
            if self._pool_guard is not None:
                self._pool_guard.look()
            decision = self._gate.decide(self._gate.observe(), self._admission.running())
        except Exception:
            logger.exception("budgets.gate_failed: the gate stays as it is")
            return
        # Some pools have a timer thread; only the event loop may touch the consumer.
        self._consumer.call_soon(self._admission.act, decision)
