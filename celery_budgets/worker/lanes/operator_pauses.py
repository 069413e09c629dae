"""The lanes that an operator has paused in this worker: ``celery lanes pause`` and ``resume``.

Running calls finish. Waiting calls are requeued at the broker, for other workers; if the broker
counts deliveries, they stay here unacknowledged until the lane is resumed.

Runs in the worker's event loop. See also: :mod:`celery_budgets.worker.lanes.queue_pauses`, which
keeps the queues paused through a reconnect, and :mod:`celery_budgets.worker.memory.admission`,
which pauses all of them for memory.
"""

from __future__ import annotations

import logging
from time import time
from typing import TYPE_CHECKING, Any

from celery_budgets.model.lanes import Lane, Lanes
from celery_budgets.worker.lanes.held_deliveries import (
    MEMORY,
    HeldDeliveries,
    must_hold,
    take_waiting,
)
from celery_budgets.worker.lanes.lane_slots import WorkerSlots
from celery_budgets.worker.lanes.queue_pauses import QueuePauses

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["REASON", "OperatorPauses"]

logger = logging.getLogger(__name__)

#: The reason under which this module pauses queues and holds deliveries.
REASON = "operator"


class OperatorPauses:
    """Pauses and resumes lanes of one worker.

    Args:
        consumer: The Celery consumer.
        queue_pauses: Pauses and resumes its queues.
        lanes: The lanes of the app.
        slots: The slots, whose waiting calls are turned away too.
        held: Holds deliveries until their lane is resumed.
    """

    def __init__(
        self,
        consumer: Any,
        queue_pauses: QueuePauses,
        lanes: Lanes,
        slots: WorkerSlots,
        held: HeldDeliveries,
    ) -> None:
        self._consumer = consumer
        self._queue_pauses = queue_pauses
        self._lanes = lanes
        self._slots = slots
        self._held = held
        #: When each lane was paused, seconds since the epoch.
        self._paused: dict[str, float] = {}

    def is_paused(self, lane: Lane) -> bool:
        """Return whether an operator has paused *lane* on this worker."""
        return lane.name in self._paused

    def paused_at(self, lane: Lane) -> float | None:
        """Return when an operator has paused *lane*, seconds since the epoch; ``None`` if not."""
        return self._paused.get(lane.name)

    def pause(self, lane: Lane) -> None:
        """Start no new calls of *lane*, also after a reconnect, until :meth:`resume`."""
        self._paused.setdefault(lane.name, time())
        # Not here, as in celery.worker.control.cancel_consumer: kombu may be in the middle of
        # reading from Redis, and would forget the queue after a consumer has been added again.
        self._consumer.call_soon(self._settle, lane)

    def resume(self, lane: Lane) -> None:
        """Consume *lane* again, unless it is paused for another reason; start its held calls."""
        self._paused.pop(lane.name, None)
        self._consumer.call_soon(self._go_on, lane, self._held.take(REASON, lane))

    def turn_away(self, request: Delivery) -> bool:
        """Requeue or hold *request* if its lane is paused; return whether it is."""
        if request.lane.name not in self._paused:
            return False
        # Requeued to a queue that is consumed here after all, it would return at once.
        if self._is_consumed(request.lane) or must_hold(self._consumer, request):
            self._held.hold(REASON, request)
        else:
            logger.info("budgets.handed_back task_id=%s reason=%s", request.id, REASON)
            request.hand_back()
        return True

    def look(self) -> None:
        """Restore the pauses after changes such as `celery control add_consumer`."""
        for lane in self._queue_pauses.lanes_of(self._lanes):
            if self.is_paused(lane):
                if self._is_consumed(lane):
                    self._settle(lane)
            else:
                self._go_on(lane, [])

    def _settle(self, lane: Lane) -> None:
        """Stop consuming *lane*, and turn away its waiting calls."""
        if not self.is_paused(lane) or not self._queue_pauses.connected:
            return
        self._queue_pauses.pause(self._queues(lane), REASON)
        if not self.is_paused(lane):
            return  # resumed meanwhile: py-amqp reads on until RabbitMQ has confirmed
        waiting = self._held.take(REASON, lane)
        waiting += take_waiting(self._consumer, self._slots, lane)
        waiting += self._held.take(MEMORY, lane)
        for request in waiting:
            self.turn_away(request)

    def _go_on(self, lane: Lane, held: list[Delivery]) -> None:
        """Consume *lane* again; start the *held* calls, or hold them again if it is paused.

        Without a connection, the next :meth:`look` does it.
        """
        if not self.is_paused(lane) and self._queue_pauses.connected:
            self._queue_pauses.resume(REASON, self._queues(lane))
        for request in held:
            self._consumer.on_task_request(request)

    def _queues(self, lane: Lane) -> list[str]:
        return self._queue_pauses.queues_of(self._lanes, lane)

    def _is_consumed(self, lane: Lane) -> bool:
        consumed = self._consumer.app.amqp.queues.consume_from
        return any(queue in consumed for queue in self._queues(lane))
