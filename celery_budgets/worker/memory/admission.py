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
from celery_budgets.model.lanes import Lane
from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.lanes.held_deliveries import must_hold, take_waiting
from celery_budgets.worker.lanes.queue_pauses import QueuePauses
from celery_budgets.worker.memory.gate import Decision, Gate

if TYPE_CHECKING:
    from celery_budgets.worker.request import BudgetedRequest

__all__ = ["Admission"]

logger = logging.getLogger(__name__)

#: Why queues are paused here (worker.consuming).
_REASON = "memory"


class Admission:
    """Carries out the decisions of one gate on one consumer.

    Args:
        consumer: The Celery consumer.
        consuming: Pauses and resumes its queues.
        gate: Decides.
        roster: The calls in hand; rejections are counted there.
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
        *,
        fail: bool,
        renew: Callable[[], None],
        keeps_calls: bool = False,
    ) -> None:
        self.gate = gate
        #: Deliveries kept unacknowledged in this worker until the gate opens.
        self.held: list[BudgetedRequest] = []
        self._consumer = consumer
        self._consuming = consuming
        self._roster = roster
        self._fail = fail
        self._renew = renew
        self._let = 0
        self._keeps_calls = keeps_calls
        #: The call that was let through last.
        self._passing: BudgetedRequest | None = None

    def running(self) -> int:
        """Return the calls that run or are on their way into the pool."""
        pauses = self._roster.pauses
        kept = len(self.held) + (pauses.held if pauses is not None else 0)
        return len(state.reserved_requests) - kept

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

    def admit(self, request: BudgetedRequest) -> bool:
        """Say whether *request* may go to the pool; otherwise turn it away."""
        if not self.gate.is_open:
            if not self._let:
                self.turn_away(request)
                return False
            self._let, self._passing = 0, request
            # Not here: kombu may be in the middle of reading from the broker.
            self._consumer.call_soon(self._pause)
        self.gate.fresh = False
        return True

    def admit_start(self, request: BudgetedRequest) -> bool:
        """Say whether a call that the pool had to keep waiting may start now.

        Only a pool of threads keeps calls; from the others they come here at once.
        """
        if self.gate.is_open or request is self._passing or not self._keeps_calls:
            return True
        self.turn_away(request)
        return False

    def turn_away(self, request: BudgetedRequest) -> None:
        """Fail *request*, hand it back, or hold it."""
        reason = self.gate.by.gauge.name if self.gate.by is not None else "max_worker_rss"
        if not self._fail and must_hold(self._consumer, request):
            self.held.append(request)
            return
        self._roster.rejected(request, reason)
        if self._fail:
            request.end_rejected(RejectedByBudget(reason, request.lane.name))
        else:
            logger.info("budgets.handed_back task_id=%s reason=%s", request.id, reason)
            request.hand_back()

    def give_up_held(self, lane: Lane) -> list[BudgetedRequest]:
        """Return the deliveries of *lane* that are held, and hold them no more."""
        given_up = [request for request in list(self.held) if request.lane.name == lane.name]
        for request in given_up:
            self.held.remove(request)  # in place: a thread of the pool may add one meanwhile
        return given_up

    def lose_connection(self) -> None:
        """Forget what is held: with its channel gone the broker hands it out again."""
        self.held.clear()
        self._let = 0

    def _pause(self) -> None:
        if self.gate.is_open or not self._consuming.connected:
            return
        if not self._fail:
            consumed = self._consumer.app.amqp.queues.consume_from
            self._consuming.pause([*consumed, *self._consuming.paused], _REASON)
        for request in take_waiting(self._consumer, self._roster):
            self.turn_away(request)

    def _resume(self) -> None:
        self._let = 0
        while self.held:
            self._consumer.on_task_request(self.held.pop(0))
        self._consume()

    def _let_one(self) -> None:
        if self._let or not self._consuming.connected:
            return
        logger.warning(
            "budgets.gate_lets_one_through: nothing runs and memory does not fall; "
            "raise max_worker_rss, or give the worker fewer neighbours"
        )
        self._let = 1
        if self.held:
            self._consumer.on_task_request(self.held.pop(0))
        else:
            self._consume()

    def _consume(self) -> None:
        if self._consuming.connected:
            self._consuming.resume(_REASON)
