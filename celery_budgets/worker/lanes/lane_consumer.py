"""``LaneConsumer``: a task consumer with a channel for each lane, so that no lane blocks another.

A broker limits unacknowledged messages (prefetch) per channel. With all queues on one channel, as
in Celery, a full lane uses up the whole count, and the broker sends nothing else. With a channel
each, the broker just stops sending to a full lane: no message is requeued, and each lane's
messages stay in order.

Cancelling a full queue and adding it again would need no channels, but on Redis a worker that
waits in BRPOP fetches from an added queue only after that command returns, up to a second later.

Runs in the worker main process. See also: :mod:`celery_budgets.worker.lanes.lane_slots`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kombu.common import PREFETCH_COUNT_MAX
from kombu.entity import Queue
from kombu.messaging import Consumer

__all__ = ["LaneConsumer"]

_Consumer: Any = Consumer  # its annotations are incomplete


class LaneConsumer(_Consumer):
    """Consumes each lane's queue on a channel of its own, and all other queues on the given one.

    Replaces ``app.amqp.Consumer``, which celery.app.amqp.AMQP.TaskConsumer instantiates.

    Args:
        channel: Celery's connection.
        queues: All queues that the worker consumes.
        prefetch: Returns the prefetch count of a queue; ``None`` for a queue of no lane.
        apply_global: Whether a channel's count can be changed while it is consumed
            (celery.worker.consumer.tasks.Tasks.qos_global; not on RabbitMQ's quorum queues).
        withheld: Returns the queues that are not consumed now, which purge includes.
        prepare: Called with a queue's name and its new channel.
        **kwargs: As for :class:`kombu.Consumer`.
    """

    def __init__(
        self,
        channel: Any,
        queues: Iterable[Queue] = (),
        *,
        prefetch: Callable[[str], int | None],
        apply_global: bool,
        prepare: Callable[[str, Any], None] = lambda queue, channel: None,
        withheld: Callable[[], Iterable[Queue]] = tuple,
        **kwargs: Any,
    ) -> None:
        self._prepare = prepare
        self._client = channel
        self._prefetch = prefetch
        self.apply_global = apply_global
        self._withheld = withheld
        self._counts: dict[str, int] = {}
        self._lanes: dict[str, Any] = {}
        self._options = kwargs
        self._handler: Any = None
        listed = list(queues)
        super().__init__(channel, [q for q in listed if prefetch(q.name) is None], **kwargs)
        for queue in listed:
            if prefetch(queue.name) is not None:
                self.add_queue(queue)

    @property
    def on_message(self) -> Any:
        """Receives the messages of all queues."""
        return self._handler

    @on_message.setter
    def on_message(self, handler: Any) -> None:
        self._handler = handler
        for consumer in self._lanes.values():
            consumer.on_message = handler

    @property
    def queues(self) -> list[Any]:
        """All queues, of lanes and others."""
        lanes = [queue for consumer in self._lanes.values() for queue in consumer.queues]
        return [*self._queues.values(), *lanes]

    @queues.setter
    def queues(self, queues: list[Any]) -> None:
        self._queues = {queue.name: queue for queue in queues}

    def add_queue(self, queue: Queue) -> Any:
        """Add a queue; the queue of a lane gets its channel here."""
        if self._prefetch(queue.name) is None:
            return super().add_queue(queue)
        consumer = self._lanes.get(queue.name)
        if consumer is None:
            consumer = Consumer(self._client.channel(), **self._options)
            self._prepare(queue.name, consumer.channel)
            consumer.on_message = self._handler
            self._lanes[queue.name] = consumer
        added = consumer.add_queue(queue)
        self._count(queue.name)
        return added

    def consume(self, no_ack: bool | None = None) -> None:
        """Consume every queue that is not consumed yet."""
        super().consume(no_ack)
        for consumer in self._lanes.values():
            consumer.consume(no_ack)

    def cancel(self) -> None:
        """Stop consuming all queues."""
        super().cancel()
        for consumer in self._lanes.values():
            consumer.cancel()

    close = cancel

    def cancel_by_queue(self, queue: Queue | str) -> None:
        """Stop consuming *queue*; its channel stays open for unacknowledged messages."""
        name = queue.name if isinstance(queue, Queue) else queue
        if name in self._lanes:
            self._lanes[name].cancel_by_queue(name)
        else:
            super().cancel_by_queue(name)

    def consuming_from(self, queue: Queue | str) -> bool:
        """Return whether *queue* is consumed now."""
        name = queue.name if isinstance(queue, Queue) else queue
        if name in self._lanes:
            return bool(self._lanes[name].consuming_from(name))
        return bool(super().consuming_from(name))

    def purge(self) -> int:
        """Delete all waiting messages, and return their number."""
        lanes = sum(consumer.purge() for consumer in self._lanes.values())
        withheld = sum(queue(self.channel).purge() for queue in self._withheld())
        return int(super().purge() + lanes + withheld)

    def qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> Any:
        """Set the counts of all channels.

        Differs from kombu: *prefetch_count*, which Celery raises for each message with an ETA,
        applies only to the channel of no lane. Each lane has a count of its own; if it can only
        be changed by a new consumer, see :meth:`renew`.
        """
        if self.apply_global:
            for name in self._lanes:
                self.recount(name)
        return super().qos(prefetch_size, prefetch_count, apply_global)

    def recount(self, queue: str) -> None:
        """Update the count of *queue*'s channel, if it has changed."""
        consumer = self._lanes.get(queue)
        if consumer is None or self._counts[queue] == self._prefetch(queue):
            return
        self._count(queue)
        if not self.apply_global:
            # The broker reads the count when a consumer begins.
            self.renew(queue)

    def renew(self, queue: str) -> None:
        """Replace the broker's consumer of *queue*, if the broker counts per consumer.

        Deliveries of the previous consumer do not count for the new one, and are acknowledged
        on the same channel, so nothing is redelivered. So messages that wait here for their ETA
        do not block others. On RabbitMQ from 4.0, and for quorum queues before.
        """
        consumer = self._lanes.get(queue)
        if consumer is not None and consumer.consuming_from(queue):
            consumer.cancel()
            consumer.consume()

    def _count(self, queue: str) -> None:
        count = self._prefetch(queue) or 0
        # More than AMQP's maximum means unlimited, as in kombu.common.QoS.set.
        self._counts[queue] = count = count if 0 <= count <= PREFETCH_COUNT_MAX else 0
        self._lanes[queue].qos(prefetch_count=count, apply_global=self.apply_global)
