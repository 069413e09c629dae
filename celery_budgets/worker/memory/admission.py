"""Carries out the decisions of the memory gate: pause, resume, turn calls away, admit one.

Runs in the worker's event loop. See also: :mod:`celery_budgets.worker.memory.gate`, which decides,
and :mod:`celery_budgets.worker.lanes.queue_pauses`, which pauses queues.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.worker import state

from celery_budgets.errors import RejectedByBudget
from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.lanes.held_deliveries import (
    MEMORY,
    HeldDeliveries,
    must_hold,
    take_waiting,
)
from celery_budgets.worker.lanes.lane_slots import WorkerSlots
from celery_budgets.worker.lanes.queue_pauses import QueuePauses
from celery_budgets.worker.memory.gate import Decision, Gate

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["Admission"]

logger = logging.getLogger(__name__)


class Admission:
    """Carries out the decisions of one gate on one consumer.

    Args:
        consumer: The Celery consumer.
        queue_pauses: Pauses and resumes its queues.
        gate: The gate.
        roster: The calls of the worker, which counts rejections.
        slots: The slots, whose waiting calls are turned away too.
        held: Holds deliveries until the gate opens.
        fail: Whether calls are failed at once instead of left at the broker.
        renew: Replaces the processes that hold the memory.
        keeps_calls: Whether the pool has a queue of its own.
    """

    def __init__(
        self,
        consumer: Any,
        queue_pauses: QueuePauses,
        gate: Gate,
        roster: Roster,
        slots: WorkerSlots,
        held: HeldDeliveries,
        *,
        fail: bool,
        renew: Callable[[], None],
        keeps_calls: bool = False,
    ) -> None:
        self.gate = gate
        self._consumer = consumer
        self._queue_pauses = queue_pauses
        self._roster = roster
        self._slots = slots
        self._held = held
        self._fail = fail
        self._renew = renew
        self._let = 0
        self._keeps_calls = keeps_calls
        #: The call that was admitted last while the gate was closed.
        self._passing: Delivery | None = None

    def running(self) -> int:
        """Return the number of calls that run or have been passed to the pool."""
        return len(state.reserved_requests) - len(self._held)

    def act(self, decision: Decision) -> None:
        """Carry out *decision*, and restore pauses that were changed since."""
        if decision is Decision.RENEW:
            self._let = 0
            self._renew()
        elif decision is Decision.LET_ONE:
            self._let_one()
            return
        if self.gate.is_open:
            self._resume()
        elif not self._let:
            self._pause()

    def admit(self, request: Delivery) -> bool:
        """Return whether *request* may go to the pool; otherwise turn it away."""
        if not self.gate.is_open:
            if not self._let:
                self.turn_away(request)
                return False
            self._let, self._passing = 0, request
            # Not here: kombu may be in the middle of reading from the broker.
            self._consumer.call_soon(self._pause)
        self.gate.fresh = False
        return True

    def admit_start(self, request: Delivery) -> bool:
        """Return whether a call that waited in the pool may start now.

        Only a pool of threads queues calls; other pools start them at once.
        """
        if self.gate.is_open or request is self._passing or not self._keeps_calls:
            return True
        self.turn_away(request)
        return False

    def turn_away(self, request: Delivery) -> None:
        """Fail, requeue or hold *request*."""
        reason = self.gate.by.gauge.name if self.gate.by is not None else "max_worker_rss"
        if not self._fail and must_hold(self._consumer, request):
            self._held.hold(MEMORY, request)
            return
        self._roster.rejected(request, reason)
        if self._fail:
            request.end_rejected(RejectedByBudget(reason, request.lane.name))
        else:
            logger.info("budgets.handed_back task_id=%s reason=%s", request.id, reason)
            request.hand_back()

    def lose_connection(self) -> None:
        """Forget the call that was to be admitted; its message is redelivered."""
        self._let = 0

    def _pause(self) -> None:
        if self.gate.is_open or not self._queue_pauses.connected:
            return
        if not self._fail:
            consumed = self._consumer.app.amqp.queues.consume_from
            self._queue_pauses.pause([*consumed, *self._queue_pauses.paused], MEMORY)
        for request in take_waiting(self._consumer, self._slots):
            self.turn_away(request)

    def _resume(self) -> None:
        self._let = 0
        while (request := self._held.take_first(MEMORY)) is not None:
            self._consumer.on_task_request(request)
        self._consume()

    def _let_one(self) -> None:
        if self._let or not self._queue_pauses.connected:
            return
        logger.warning(
            "budgets.gate_lets_one_through: nothing runs and memory does not fall; "
            "raise max_worker_rss, or give the worker fewer neighbours"
        )
        self._let = 1
        held = self._held.take_first(MEMORY)
        if held is not None:
            self._consumer.on_task_request(held)
        else:
            self._consume()

    def _consume(self) -> None:
        if self._queue_pauses.connected:
            self._queue_pauses.resume(MEMORY)
