"""A channel that takes messages from Redis without ever being the only one to have them.

kombu takes a message out of its list by BRPOP, and notes it in ``unacked`` by a second command: a
worker that is killed in between has lost it. Here one script moves as many messages as there is
room for from their list to ``unacked``, and acknowledges what has ended meanwhile.

Runs in the worker main process. See also: :mod:`celery_budgets.worker.transport.waiting`, for when
there is no message, and :mod:`celery_budgets.worker.transport.deliveries`, for those in hand.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from typing import Any

from kombu.transport import redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis.exceptions import NoScriptError

from celery_budgets.worker.transport.commands import Commands, tell_of_undecodable
from celery_budgets.worker.transport.deliveries import Deliveries
from celery_budgets.worker.transport.line import Line
from celery_budgets.worker.transport.scripts import FETCH, MOST_AT_ONCE
from celery_budgets.worker.transport.waiting import Waits

__all__ = ["FetchingChannel"]

logger = logging.getLogger(__name__)

#: How long a channel that closes waits for what it has asked for, seconds.
CLOSING_SECONDS = 5.0
#: About how many bytes one fetch may bring: Redis serves nobody else meanwhile.
_MOST_BYTES = 4_000_000

_Channel: Any = redis.Channel


class FetchingChannel(Commands, _Channel):
    """A channel to Redis.

    Mirrors ``_brpop_start`` and ``_brpop_read``, which serve on where a queue is consumed without
    acknowledgements, as those of answers to remote control are.
    """

    QoS = Deliveries
    brpop_timeout: float = 1  # before 5.6 kombu has it in a default

    def __init__(self, connection: Any, **options: Any) -> None:
        self._fetch = Line(self, "FETCH")
        #: What this connection could not tell, and the next one will.
        self.leftovers = connection.leftovers
        self.waits = Waits(self, self._look)
        #: What the fetch has brought and nobody has been given yet: queue and message.
        self._arrived: deque[tuple[str, str, Any]] = deque()
        #: Acknowledged tags that Redis has not been sent; that it was, and has not answered.
        self._settled: list[str] = []
        self._being_settled: list[str] = []
        #: May there be messages? Else lines wait for them.
        self._hot = True
        self._asked: tuple[list[tuple[str, str, int]], int] = ([], 0)
        self._whole_script = False
        #: Bytes of a message, by the last fetch.
        self._message_bytes = 1.0
        self._without_ack: set[str] = set()
        #: Is every message taken as kombu does?
        self.pops = False
        #: Does Redis run ours?
        self.runs_scripts = True
        super().__init__(connection, **options)
        self.handlers[self._fetch.kind] = self._on_fetched
        self._choose_way()

    # What the consumer asks of a channel.

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Consume *queue*, and look into it at once; have in hand what runs on of it."""
        if no_ack:
            self._without_ack.add(queue)
        else:
            self.leftovers.take_over(self, queue)
        consumed = super().basic_consume(queue, no_ack, *args, **kwargs)
        self._choose_way()
        return consumed

    def _basic_cancel(self, consumer_tag: str) -> Any:
        cancelled = super()._basic_cancel(consumer_tag)
        self._choose_way()
        return cancelled

    def _choose_way(self) -> None:
        self._hot, self.waits.complete = True, False
        self.runs_scripts = self.connection.may_fetch
        self.pops = bool(
            not self.runs_scripts
            or not self.ack_emulation
            or self.max_connections == 1  # it takes two: one of them waits
            or self._without_ack.intersection(self.active_queues)
        )

    def _look(self) -> None:
        self._hot = True

    def settle_soon(self, tag: str) -> bool:
        """Acknowledge *tag* at this turn of the event loop; return whether there is one."""
        if self.connection is None:  # closed, and what was in hand handed back
            self.leftovers.acknowledge(tag)
            return True
        if self.pops or not self.connection.in_event_loop:
            return False
        self._settled.append(tag)
        return True

    def settle_rest(self) -> None:
        """Acknowledge what waits for a turn; without a connection, :meth:`finish` tries again."""
        with suppress(*self.connection_errors):
            self.settle(self._settled)
            self._settled = []

    def hand_back(self, tags: list[str]) -> None:
        """Put *tags*, which have not been settled, back to the head of their queue, in order."""
        if self.connection is None or not self.runs_scripts:
            return
        if self.qos.hand_back(tags):
            for tag in tags:
                self.qos._delivered.pop(tag, None)

    @property
    def fetches(self) -> bool:
        """Whether Redis has been asked for messages, and its reply is not read yet."""
        return bool(self._fetch.waits)

    # The turns of the event loop.

    def turn(self) -> None:
        """Send what is to be sent; called at each turn of the event loop."""
        if self._arrived:
            self._hand_out()
        if self._fetch.waits:
            return
        qos = self.qos
        wanted = qos.room() if self._active_queues and not self.pops else 0
        if (wanted and self._hot) or self._settled:
            self._send_fetch(wanted if self._hot else 0)
        elif wanted and not self.waits.complete:
            self.waits.begin()

    def _send_fetch(self, wanted: int) -> None:
        queues: list[str] = []
        steps: list[int] = []
        if wanted:
            queues = self._queue_cycle.consume(len(self.active_queues))
            steps = list(self.priority_steps)
            if len(queues) > 1 or steps[0] != self.priority_steps[0]:
                # Each message decides whose turn is next: of the queues, or of low priority.
                wanted = 1
            wanted = min(wanted, max(1, int(_MOST_BYTES / self._message_bytes)))
        lists = [(self._q_for_pri(queue, step), queue, step) for step in steps for queue in queues]
        self._asked = lists, wanted
        # Also what was sent before, where its reply has never come.
        settled = self._being_settled + self._settled
        self._being_settled, self._settled = settled[:MOST_AT_ONCE], settled[MOST_AT_ONCE:]
        names, holder = [name for name, _, _ in lists], self.leftovers.holder
        self._fetch.send(
            FETCH.call(
                self.keys(names),
                [len(self._being_settled), holder.number, *self._being_settled]
                + [wanted, holder.time(), self.waits.woken_by(names)]
                + [f', "", {dumps(queue)}]' for _, queue, _ in lists],
                whole=self._whole_script,
            )
        )

    def _on_fetched(self) -> bool:
        """Read what the fetch has brought, and hand it out."""
        if self._fetch.was_closed():
            return False
        try:
            found = self._fetch.receive()
        except NoScriptError:
            self._whole_script = True
            return False
        self._whole_script = False
        self._being_settled = []
        self._take(found)
        self._hand_out()
        return len(found) > 1

    def _take(self, found: list[Any]) -> None:
        lists, wanted = self._asked
        if wanted:
            self.waits.end_fetch(found[0] if len(found) == 1 else None)
        found = found if len(found) > 1 else []
        tags = []
        if found:
            self._message_bytes = max(1.0, 3 * sum(map(len, found[2::3])) / len(found))
        for at in range(0, len(found), 3):
            name, queue, step = lists[int(found[at])]
            tag, text = bytes_to_str(found[at + 1]), found[at + 2]
            self.waits.watch([step])
            self._queue_cycle.rotate(queue)
            message = self._read(tag, text, name)
            if message is not None:
                tags.append(tag)
                self._arrived.append((queue, tag, message))
        self.qos.note(tags)
        if wanted:
            self._hot = len(found) == 3 * wanted

    def _read(self, tag: str, text: bytes, name: str) -> Any:
        try:
            message = loads(bytes_to_str(text))
            if str(message["properties"]["delivery_tag"]) == tag:
                return message
        except (ValueError, TypeError, LookupError):
            pass
        if tag:
            self.put_aside(tag, name, text)
        else:
            tell_of_undecodable(name, text)
        return None

    def _hand_out(self) -> None:
        """Hand what has arrived to the worker; what cannot be stays for the next turn."""
        stray = []
        while self._arrived:
            queue, tag, message = self._arrived.popleft()
            if queue not in self.connection._callbacks:  # not consumed any more
                stray.append(tag)
                continue
            try:
                self.connection._deliver(message, queue)
            except (ValueError, TypeError, LookupError, AttributeError):
                if self.qos._delivered.get(tag, message) is not None:
                    raise
                # Its body has no encoding that kombu knows: it would end each worker in turn.
                self.put_aside(tag, queue, dumps(message))
                self.qos._delivered.pop(tag)
        if stray:
            self.hand_back(stray)

    # The end.

    def close(self) -> None:
        """Hand back what is in hand, as kombu does, when nothing is under way any more."""
        if not self.closed:
            self.finish()
        super().close()
        self._disconnect_pools()  # made anew for what was handed back

    def _poll_error(self, kind: str, **options: Any) -> None:
        """Read the error of one of our lines, as kombu does of its own."""
        for line in (self._fetch, *self.waits):
            if line.kind == kind:
                line.receive()
                return
        super()._poll_error(kind, **options)

    def finish(self) -> None:
        """Read what has been asked for, and send what has been acknowledged."""
        settled = self._being_settled + self._settled
        try:
            if self._fetch.waits:
                # A Redis that is silent would keep a worker from stopping for ever.
                self._fetch.connection._sock.settimeout(CLOSING_SECONDS)
                self._take(self._fetch.receive())
                settled = self._settled
            self.settle(settled)
        except (*self.connection_errors, self.ResponseError):
            logger.warning("budgets.acknowledge_failed deliveries=%s", len(settled), exc_info=True)
            self.leftovers.acknowledged += settled
        self._arrived.clear()
        self._settled, self._being_settled = [], []
        for line in (self._fetch, *self.waits):
            line.close()

    def drop_stale(self, now: float) -> None:
        """Hang up where a reply is overdue, as MultiChannelPoller.maybe_check_brpop_health.

        One that is there and has not been read, such as behind a body on the pool solo, is not.
        """
        longest = self.brpop_timeout + self.health_check_interval
        for line in (self._fetch, *self.waits):
            silent = line.waits and now - line.sent_at > longest
            if silent and self.health_check_interval and not line.is_readable():
                logger.warning("budgets.redis_silent seconds=%.0f", now - line.sent_at)
                line.hang_up()
                self._hot, self.waits.complete = True, False
