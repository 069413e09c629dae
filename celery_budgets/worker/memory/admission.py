"""What a consumer does as its gate says: pause, resume, turn calls away, let one through.

Runs in the worker's event loop. See also: :mod:`celery_budgets.worker.memory.gate`, which decides,
and :mod:`celery_budgets.worker.lanes.queue_pauses`, by which queues are paused.
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
        consuming: Pauses and resumes its queues.
        gate: Decides.
        roster: The calls in hand; rejections are counted there.
        slots: What waits for a slot is turned away too.
        held: Where deliveries are kept until the gate opens.
        fail: Calls are failed at once instead of left at the broker.
        renew: Replaces the processes that hold the memory.
        keeps_calls: Does the pool have a queue of its own?
    """

    def __init__(
        self,
        consumer: Any,
        consuming: QueuePauses,
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
        self._consuming = consuming
        self._roster = roster
        self._slots = slots
        self._held = held
        self._fail = fail
        self._renew = renew
        self._let = 0
        self._keeps_calls = keeps_calls
        #: The call that was let through last.
        self._passing: Delivery | None = None

    def running(self) -> int:
        """Return the calls that run or are on their way into the pool."""
        return len(state.reserved_requests) - len(self._held)

    def act(self, decision: Decision) -> None:
        """Do what the gate has decided, and put right what has changed since."""
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
        """Return whether a call that the pool had to keep waiting may start now.

        Only a pool of threads keeps calls; from the others they come here at once.
        """
        if self.gate.is_open or request is self._passing or not self._keeps_calls:
            return True
        self.turn_away(request)
        return False

    def turn_away(self, request: Delivery) -> None:
        """Fail *request*, hand it back, or hold it."""
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
        """Forget the call that was to be let through; it comes again."""
        self._let = 0

    def _pause(self) -> None:
        if self.gate.is_open or not self._consuming.connected:
            return
        if not self._fail:
            consumed = self._consumer.app.amqp.queues.consume_from
            self._consuming.pause([*consumed, *self._consuming.paused], MEMORY)
        for request in take_waiting(self._consumer, self._slots):
            self.turn_away(request)

    def _resume(self) -> None:
        self._let = 0
        while (request := self._held.take_first(MEMORY)) is not None:
            self._consumer.on_task_request(request)
        self._consume()

    def _let_one(self) -> None:
        if self._let or not self._consuming.connected:
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
        if self._consuming.connected:
            self._consuming.resume(MEMORY)
