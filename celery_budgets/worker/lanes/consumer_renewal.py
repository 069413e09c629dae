"""Replaces the broker's consumer of a lane when calls with an ETA use up its prefetch count.

If the broker counts prefetched messages per consumer (RabbitMQ from 4.0, and quorum queues
before), that count cannot be raised while the queue is consumed. A lane with as many calls of a
later ETA as it has slots would get no other calls until they are due.

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
    """Counts the calls with an ETA that occupy the prefetch count of each queue.

    Args:
        consumer: The worker's consumer (celery.worker.consumer.Consumer).
        lanes: The lanes of the app.
        slots: The slots of the worker.
        prefetch: Returns the prefetch count of a queue.
    """

    def __init__(
        self, consumer: Any, lanes: Lanes, slots: WorkerSlots, prefetch: Callable[[str], int | None]
    ) -> None:
        self._consumer = consumer
        self._lanes = lanes
        self._slots = slots
        self._prefetch = prefetch
        #: Whether the broker counts per consumer.
        self.needed = False
        self._blocking: Counter[str] = Counter()
        self._renewing: set[str] = set()

    def lose_connection(self) -> None:
        """Forget the deliveries of the lost consumers."""
        self._blocking.clear()

    def note(self, queue: str, eta: Any) -> None:
        """Count a call that waits for its *eta*, unless the broker itself has delayed it."""
        if not _is_due(eta):
            self._blocking[queue] += 1
            self.look_soon(queue)

    def look_soon(self, queue: str) -> None:
        """Check whether *queue* is blocked, after the messages already sent are processed."""
        if queue in self._blocking and queue not in self._renewing:
            self._renewing.add(queue)
            self._consumer.call_soon(self._look, queue)

    def _look(self, queue: str) -> None:
        """Replace the consumer of *queue* if the broker sends no more.

        So at most twice the count is prefetched, besides the calls that wait for their ETA.
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
    """Return whether the *eta* of a request, in any time zone, has passed."""
    try:
        return bool(eta <= datetime.now(eta.tzinfo))
    except (AttributeError, TypeError):
        return True
