"""Consumes a lane anew where calls that wait here for their ETA would keep others from coming.

Where a broker counts what it may send ahead by its consumer (RabbitMQ from 4.0, and quorum queues
before), that count cannot be raised while it is consumed, and a lane with as many calls of a later
ETA as it has slots would get no others until they are due.

See also: :meth:`celery_budgets.worker.lanes.lane_consumer.LaneConsumer.renew`. Runs in the worker
main process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

from celery_budgets.model.lanes import Lanes
from celery_budgets.worker.lanes.lane_consumer import LaneConsumer
from celery_budgets.worker.lanes.lane_slots import WorkerSlots

__all__ = ["ConsumerRenewal"]


class ConsumerRenewal:
    """Knows how many calls that wait count on the broker's consumer of each queue.

    Args:
        consumer: The worker's consumer (celery.worker.consumer.Consumer).
        lanes: The lanes of the app.
        slots: What their calls in hand are.
        prefetch: Returns the count of a queue.
    """

    def __init__(
        self, consumer: Any, lanes: Lanes, slots: WorkerSlots, prefetch: Callable[[str], int | None]
    ) -> None:
        self._consumer = consumer
        self._lanes = lanes
        self._slots = slots
        self._prefetch = prefetch
        #: Has each of the broker's consumers a count of its own?
        self.needed = False
        self._blocking: Counter[str] = Counter()
        self._renewing: set[str] = set()

    def lose_connection(self) -> None:
        """Forget what the lost consumers had delivered."""
        self._blocking.clear()

    def note(self, queue: str, eta: Any) -> None:
        """Note a call that waits for its *eta*; not one that the broker itself has delayed."""
        if not _is_due(eta):
            self._blocking[queue] += 1
            self.look_soon(queue)

    def look_soon(self, queue: str) -> None:
        """Look whether *queue* is blocked, once what the broker has sent is taken in."""
        if queue in self._blocking and queue not in self._renewing:
            self._renewing.add(queue)
            self._consumer.call_soon(self._look, queue)

    def _look(self, queue: str) -> None:
        """Renew the consumer of *queue* where the broker sends no more.

        So at most twice as many calls as the count are in hand beside those that wait.
        """
        self._renewing.discard(queue)
        lane, count = self._lanes.of_queue(queue), self._prefetch(queue)
        consumer = self._consumer.task_consumer
        if lane is None or not count or not isinstance(consumer, LaneConsumer):
            return
        slots = self._slots.lanes[lane.name]
        if self._blocking[queue] + len(slots.taken) + len(slots.held) >= count:
            del self._blocking[queue]
            consumer.renew(queue)


def _is_due(eta: Any) -> bool:
    """Return whether the *eta* of a request, in whatever zone it is, has passed."""
    try:
        return bool(eta <= datetime.now(eta.tzinfo))
    except (AttributeError, TypeError):
        return True
