"""What a consumer does as its gate says: pause, resume, turn calls away, let one through.

A queue is paused by ``cancel_task_queue`` and resumed by ``add_task_queue``: that survives a
reconnect, and no message is lost by it on any broker. Never prefetch 0 (it means unlimited), a
patched ``can_consume`` (loses what BRPOP has fetched) or ``Reject(requeue=True)`` (spins).

Runs in the worker's event loop. See also: :mod:`celery_budgets.worker.gate`, which decides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.worker import state

from celery_budgets.errors import RejectedByBudget
from celery_budgets.worker.gate import Decision, Gate
from celery_budgets.worker.roster import Roster

if TYPE_CHECKING:
    from celery_budgets.worker.request import BudgetedRequest

__all__ = ["Admission"]

logger = logging.getLogger(__name__)


class Admission:
    """Carries out the decisions of one gate on one consumer.

    Args:
        consumer: The Celery consumer.
        gate: Decides.
        roster: The calls in hand; rejections are counted there.
        fail: Calls are failed at once instead of left at the broker.
        renew: Replaces the processes that hold the memory.
        keeps_calls: Does the pool have a queue of its own?
    """

    def __init__(
        self,
        consumer: Any,
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
        self._roster = roster
        self._fail = fail
        self._renew = renew
        #: Names of the queues that are consumed again when the gate opens.
        self._paused: list[str] = []
        self._let = 0
        self._keeps_calls = keeps_calls
        #: The call that was let through last.
        self._passing: BudgetedRequest | None = None

    def running(self) -> int:
        """Return the calls that run or are on their way into the pool."""
        return len(state.reserved_requests) - len(self.held)

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
        if not self._fail and self._must_hold(request):
            self.held.append(request)
            return
        self._roster.rejected(request, reason)
        if self._fail:
            request.end_rejected(RejectedByBudget(reason, request.lane.name))
        else:
            logger.info("budgets.handed_back task_id=%s reason=%s", request.id, reason)
            request.hand_back()

    def lose_connection(self) -> None:
        """Forget what is held: with its channel gone the broker hands it out again."""
        self.held.clear()
        self._let = 0

    def _must_hold(self, request: BudgetedRequest) -> bool:
        """Say whether handing back could use up the deliveries that the broker allows.

        A RabbitMQ quorum queue drops a message after its delivery limit, 20 by default. One
        that was delivered before is not handed back again, and so never comes near that.
        """
        if self._consumer.connection.transport.driver_type != "amqp":
            return False
        queue = self._consumer.app.amqp.queues.get(request.delivery_info.get("routing_key"))
        arguments = getattr(queue, "queue_arguments", None) or {}
        quorum = arguments.get("x-queue-type") == "quorum"
        return quorum or bool(request.delivery_info.get("redelivered"))

    def _pause(self) -> None:
        if self.gate.is_open or self._consumer.task_consumer is None:
            return
        if not self._fail:
            for queue in list(self._consumer.app.amqp.queues.consume_from):
                # Noted first: cancelling forgets the queue even where the connection is lost by
                # then, and nobody else would know that it has to be consumed again.
                if queue not in self._paused:
                    self._paused.append(queue)
                self._consumer.cancel_task_queue(queue)
        for request in self._take_waiting():
            self.turn_away(request)

    def _resume(self) -> None:
        self._let = 0
        while self.held:
            self._consumer.on_task_request(self.held.pop(0))
        self._consume()

    def _let_one(self) -> None:
        if self._let or self._consumer.task_consumer is None:
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
        if self._consumer.task_consumer is None:
            return
        while self._paused:
            self._consumer.add_task_queue(self._paused[0])
            del self._paused[0]

    def _take_waiting(self) -> list[BudgetedRequest]:
        """Take the deliveries that wait for a slot out of the worker's semaphore.

        Reaches into kombu.asynchronous.semaphore.LaxBoundedSemaphore, whose waiters are what
        celery.worker.worker.WorkController._process_task_sem put there. They hold no slot.
        """
        semaphore = getattr(self._consumer.controller, "semaphore", None)
        waiting = getattr(semaphore, "_waiting", None)
        if not waiting:
            return []
        taken = [entry for entry in waiting if entry[1] and hasattr(entry[1][0], "hand_back")]
        for entry in taken:
            waiting.remove(entry)
        return [entry[1][0] for entry in taken]
