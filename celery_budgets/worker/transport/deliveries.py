"""The deliveries of one channel that are in hand, and how each is settled.

Mirrors kombu.transport.redis.QoS, and keeps its format at Redis and its ``_delivered``: a message
by its delivery tag for each delivery in hand, in the order in which they came. Differs: the
fetch has noted them at Redis already; what is acknowledged in the event loop goes with the next
fetch; what goes back goes in its order, by one script, which no other client can interrupt.
"""

from __future__ import annotations

import logging
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from celery_budgets.worker.transport.commands import tell_of_undecodable
from celery_budgets.worker.transport.holder import ANYBODY
from celery_budgets.worker.transport.scripts import HAND_BACK, MOST_AT_ONCE, UNDECODABLE

__all__ = ["Deliveries"]

logger = logging.getLogger(__name__)


class Deliveries(redis.QoS):
    """The deliveries in hand of one channel."""

    def room(self) -> int:
        """Return how many further messages may be in hand, at most what one fetch may bring."""
        if "can_consume" in vars(self):
            # Celery's worker_disable_prefetch: it counts what has been handed to the worker.
            return int(self.can_consume())
        if not self.prefetch_count:
            return MOST_AT_ONCE
        in_hand = len(self._delivered) - len(self._dirty)
        return min(MOST_AT_ONCE, max(0, self.prefetch_count - in_hand))

    def note(self, tags: list[str]) -> None:
        """Count what a fetch has brought as in hand, before it is handed to the worker."""
        self._flush()
        for tag in tags:
            self._quick_append(tag, None)

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a delivery here; at Redis, as kombu does, only where the fetch has not.

        Differs from kombu there in the time, which says that this worker holds it.
        """
        if delivery_tag not in self._delivered:
            info = message.delivery_info
            entry = dumps([message._raw, info["exchange"], info["routing_key"]])
            times = {delivery_tag: self.channel.leftovers.holder.time()}
            with self.pipe_or_acquire() as pipe:
                pipe.zadd(self.unacked_index_key, times)
                pipe.hset(self.unacked_key, delivery_tag, entry).execute()
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a delivery: with the next fetch, or at once where no event loop sends it."""
        channel = self.channel
        if not channel.runs_scripts:
            super().ack(delivery_tag)
            return
        if not channel.settle_soon(delivery_tag):
            channel.settle([delivery_tag])
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject a delivery; one that is not to come again is settled as by :meth:`ack`."""
        if not requeue:
            self.ack(delivery_tag)
        elif self.channel.connection is None:  # all that was in hand has gone back, or runs on
            self.channel.leftovers.requeue(delivery_tag)
        elif self.channel.runs_scripts:
            self._put_back([delivery_tag], self._holder, leftmost=True)
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().reject(delivery_tag, requeue=True)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Put one message back into its queue, by a script instead of a transaction.

        kombu's watches all of ``unacked``, and begins anew for as long as others write to it.
        """
        if self.channel.runs_scripts:
            self._put_back([bytes_to_str(tag)], ANYBODY, leftmost=leftmost)
        else:
            super().restore_by_tag(tag, client=client, leftmost=leftmost)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """As kombu; of a channel that nobody has closed, acknowledgements are sent before."""
        if not self.channel.closed:
            self.channel.finish()
        super().restore_unacked_once(stderr)

    def restore_unacked(self, client: Any = None) -> None:
        """Put all that is in hand back to the head of its queue, in its order.

        Without a connection the next one does it: it is known then what has started.
        """
        self._flush()
        if not self.channel.runs_scripts:
            super().restore_unacked(client)
            return
        delivered, leftovers = dict(self._delivered), self.channel.leftovers
        self._delivered.clear()
        if leftovers.reconnects or not self.hand_back(list(delivered)):
            leftovers.in_hand.update(delivered)

    def hand_back(self, tags: list[str]) -> bool:
        """Put *tags* back to the head of their queue; return whether Redis could be told."""
        try:
            self._put_back(tags, self._holder)
        except self.channel.connection_errors:
            logger.warning("budgets.hand_back_failed deliveries=%s", len(tags), exc_info=True)
            return False
        return True

    @property
    def _holder(self) -> int:
        return int(self.channel.leftovers.holder.number)

    def _put_back(self, tags: list[str], holder: int, *, leftmost: bool = False) -> None:
        """Tell Redis, with the oldest last: it is the first to come again.

        Only of what *holder* has in hand still.
        """
        channel, push = self.channel, "LPUSH" if leftmost else "RPUSH"
        waiting = list(tags)
        while waiting:
            some, waiting = waiting[-MOST_AT_ONCE:], waiting[:-MOST_AT_ONCE]
            entries = channel.ask("HMGET", channel.key(self.unacked_key), *some)
            lists: dict[str, int] = {}
            arguments: list[Any] = []
            for tag, entry in reversed(list(zip(some, entries, strict=True))):
                text, names = self._destination(tag, entry) if entry else ("", [])
                if names:
                    places = [lists.setdefault(name, len(lists)) for name in names]
                    arguments += [tag, text, len(places), *places]
            if arguments:
                channel.run(HAND_BACK, list(lists), [0, holder, push, *arguments])

    def _destination(self, tag: str, entry: bytes) -> tuple[str, list[str]]:
        """Return the text of a message of ``unacked``, marked as delivered before, and its lists.

        Mirrors Channel._do_restore_message. A message that nobody can read would stop the sweep
        for good, kombu's too: it is put aside.
        """
        channel = self.channel
        text = bytes_to_str(entry)
        try:
            payload, exchange, routing_key = loads(text)
        except ValueError:
            tell_of_undecodable(channel.unacked_key, text)
            return text, [channel.unacked_key + UNDECODABLE]
        try:
            payload["headers"]["redelivered"] = True
            payload["properties"]["delivery_info"]["redelivered"] = True
        except KeyError:
            pass
        priority = channel._get_message_priority(payload, reverse=False)
        queues = channel._lookup(exchange, routing_key)
        return dumps(payload), [channel._q_for_pri(queue, priority) for queue in queues]
