"""The lanes that an operator has paused in this worker: ``celery lanes pause`` and ``resume``.

What runs ends in peace. What waits goes back to the broker, for other workers; or stays here
unacknowledged until the lane is resumed, where the broker counts deliveries.

Runs in the worker's event loop. See also: :mod:`celery_budgets.worker.lanes.queue_pauses`, which
keeps the queues paused through a reconnect, and :mod:`celery_budgets.worker.memory.admission`,
which pauses all of them for memory.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery_budgets.model.lanes import Lane, Lanes
from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.lanes.held_deliveries import must_hold, take_waiting
from celery_budgets.worker.lanes.queue_pauses import QueuePauses

if TYPE_CHECKING:
    from celery_budgets.worker.request import BudgetedRequest

__all__ = ["REASON", "OperatorPauses"]

logger = logging.getLogger(__name__)

#: Why queues are paused here (worker.consuming).
REASON = "operator"


class OperatorPauses:
    """Pauses and resumes lanes of one worker.

    Args:
        consumer: The Celery consumer.
        consuming: Pauses and resumes its queues.
        lanes: The lanes of the app.
        roster: The calls in hand.
    """

    def __init__(self, consumer: Any, consuming: QueuePauses, lanes: Lanes, roster: Roster) -> None:
        self._consumer = consumer
        self._consuming = consuming
        self._lanes = lanes
        self._roster = roster
        #: Deliveries kept unacknowledged until their lane is resumed, by paused lane.
        self._held: dict[str, list[BudgetedRequest]] = {}

    @property
    def held(self) -> int:
        """Deliveries that are kept until their lane is resumed."""
        return sum(map(len, self._held.values()))

    def is_paused(self, lane: Lane) -> bool:
        """Say whether an operator has paused *lane* here."""
        return lane.name in self._held

    def pause(self, lane: Lane) -> None:
        """Start no further call of *lane*, also after a reconnect, until :meth:`resume`."""
        self._held.setdefault(lane.name, [])
        # Not here, as in celery.worker.control.cancel_consumer: kombu may be in the middle of
        # reading from Redis, and would forget the queue after a consumer has been added again.
        self._consumer.call_soon(self._settle, lane)

    def resume(self, lane: Lane) -> None:
        """Consume *lane* again, unless there is another reason not to; start what was kept."""
        self._consumer.call_soon(self._go_on, lane, self._held.pop(lane.name, []))

    def turn_away(self, request: BudgetedRequest) -> bool:
        """Hand back or keep *request* where its lane is paused, and say whether it is."""
        held = self._held.get(request.lane.name)
        if held is None:
            return False
        # Handed back to a queue that somebody consumes here all the same it would come at once.
        if self._is_consumed(request.lane) or must_hold(self._consumer, request):
            held.append(request)
        else:
            logger.info("budgets.handed_back task_id=%s reason=%s", request.id, REASON)
            request.hand_back()
        return True

    def look(self) -> None:
        """Put right what has changed since, such as by `celery control add_consumer`."""
        for lane in self._consuming.lanes_of(self._lanes):
            if self.is_paused(lane):
                if self._is_consumed(lane):
                    self._settle(lane)
            else:
                self._go_on(lane, [])

    def lose_connection(self) -> None:
        """Forget what is kept: with its channel gone the broker hands it out again."""
        for held in self._held.values():
            held.clear()

    def _settle(self, lane: Lane) -> None:
        """Take nothing of *lane* from the broker, and turn away what has been taken."""
        if not self.is_paused(lane) or not self._consuming.connected:
            return
        self._consuming.pause(self._queues(lane), REASON)
        if not self.is_paused(lane):
            return  # resumed meanwhile: py-amqp reads on until RabbitMQ has confirmed
        waiting, self._held[lane.name] = self._held[lane.name], []
        waiting += take_waiting(self._consumer, self._roster, lane)
        if self._roster.admission is not None:
            waiting += self._roster.admission.give_up_held(lane)
        for request in waiting:
            self.turn_away(request)

    def _go_on(self, lane: Lane, held: list[BudgetedRequest]) -> None:
        """Take *lane* from the broker again; start what was *held*, or keep it where it is paused.

        Without a connection the next :meth:`look` does it.
        """
        if not self.is_paused(lane) and self._consuming.connected:
            self._consuming.resume(REASON, self._queues(lane))
        for request in held:
            self._consumer.on_task_request(request)

    def _queues(self, lane: Lane) -> list[str]:
        return self._consuming.queues_of(self._lanes, lane)

    def _is_consumed(self, lane: Lane) -> bool:
        consumed = self._consumer.app.amqp.queues.consume_from
        return any(queue in consumed for queue in self._queues(lane))
