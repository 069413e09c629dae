"""Looks for the message of one call at the broker, without taking it.

Redis keeps a queue as lists, which are read from the end that workers take from. RabbitMQ hands a
message out only to a consumer, so there the messages of a queue are counted.

Runs in the process that asks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from celery_budgets.sending.why.evidence import Message
from celery_budgets.units import MIB

__all__ = ["AtBroker", "counted", "look", "queue_counts"]

logger = logging.getLogger(__name__)

#: Most messages of a list that are read, and how long all may take, seconds.
MOST = 10_000
SECONDS = 0.5
#: Most bytes that all may have, and about how many are read at once: calls may have long arguments.
MOST_BYTES = 64 * MIB
CHUNK_BYTES = 4 * MIB
#: Messages that are read first and at once, and which share of the last ones is read again with the
#: next: some are taken in between.
FIRST = 10
CHUNK = 1_000
OVERLAP = 10


@dataclass(frozen=True)
class AtBroker:
    """What was found there."""

    message: Message | None = None
    #: Whether all messages were read.
    searched: bool = False
    #: Whether it is noted as in a worker's hand.
    delivered: bool = False
    #: Messages that wait, by queue.
    counts: dict[str, int] = field(default_factory=dict)


def look(connection: Any, queues: Sequence[str], task_id: str) -> AtBroker:
    """Return what a Redis has of *task_id*; nothing of another broker.

    Args:
        connection: A connection to the broker.
        queues: The queues in which it may be; the first are searched first.
        task_id: Id of the call.

    Raises:
        kombu.exceptions.OperationalError: The broker does not answer.
    """
    channel = connection.default_channel
    if not (hasattr(channel, "_q_for_pri") and hasattr(channel, "conn_or_acquire")):
        return AtBroker()
    with channel.conn_or_acquire() as client:
        return _Search(channel, client, task_id).of(queues)


def counted(connection: Any, queues: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return how many messages and how many consumers each of *queues* has on RabbitMQ.

    Nothing of another broker.

    Raises:
        kombu.exceptions.OperationalError: The broker does not answer.
    """
    return queue_counts(connection, queues) if connection.transport.driver_type == "amqp" else {}


def queue_counts(connection: Any, queues: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return how many messages and how many consumers each of *queues* has; none does not exist.

    Raises:
        kombu.exceptions.OperationalError: The broker does not answer.
    """
    counts: dict[str, tuple[int, int]] = {}
    channel = None
    for queue in queues:
        channel = channel or connection.channel()
        try:
            counts[queue] = channel.queue_declare(queue, passive=True)[1:]
        except connection.channel_errors as exc:
            # There is no such queue; RabbitMQ has closed the channel.
            logger.debug("budgets.no_queue queue=%s: %s", queue, exc)
            channel.close()
            channel = None
    if channel is not None:
        channel.close()
    return counts


class _Search:
    """One search of the lists of a Redis."""

    def __init__(self, channel: Any, client: Any, task_id: str) -> None:
        self._channel = channel
        self._client = client
        self._task_id = task_id
        self._text = task_id.encode()
        self._ends_at = monotonic() + SECONDS
        self._message: Message | None = None
        self._searched = True
        self._bytes = 0
        self._prefix = getattr(channel, "global_keyprefix", "") or ""

    def of(self, queues: Sequence[str]) -> AtBroker:
        """Search *queues*, then what is in the hands of workers."""
        counts = {queue: self._in_queue(queue) for queue in queues}
        delivered = self._message is None and self._in_hand()
        return AtBroker(self._message, self._searched, delivered, counts)

    def _in_queue(self, queue: str) -> int:
        """Search one queue, all of its priorities; return how many messages it has."""
        before = 0
        for step in self._channel.priority_steps:
            key = self._channel._q_for_pri(queue, step)
            length = self._client.llen(key)
            if length and self._message is None:
                place = self._in_list(self._prefix + key, length)
                if place is not None:
                    self._message = Message(queue, before + place[0], place[1])
            before += length
        return before

    def _in_list(self, key: str, length: int) -> tuple[int, dict[str, Any]] | None:
        """Return how many messages of a list are before that of the call, and its headers."""
        start, count = 0, FIRST
        while start < min(length, MOST) and not self._is_late():
            count = min(count, MOST - start)
            texts = self._client.lrange(key, -start - count, -start - 1)
            for place, text in enumerate(reversed(texts)):
                headers = self._headers_in(text)
                if headers is not None:
                    return start + place, headers
            if len(texts) < count:
                return None
            start += count - count // OVERLAP
            count = self._next_count(texts)
        if start < length:
            self._searched = False
        return None

    def _next_count(self, texts: Sequence[bytes]) -> int:
        """Return how many messages to read next, after *texts*."""
        size = sum(map(len, texts))
        self._bytes += size
        return max(1, min(CHUNK, CHUNK_BYTES * len(texts) // max(size, 1)))

    def _headers_in(self, text: bytes) -> dict[str, Any] | None:
        """Return the headers of a message if it is that of the call."""
        if self._text not in text:
            return None
        try:
            headers = json.loads(text)["headers"]
        except (ValueError, KeyError, TypeError):
            return None
        # The id of a call stands in those that it has sent, too.
        return headers if headers.get("id") == self._task_id else None

    def _in_hand(self) -> bool:
        """Return whether the message is noted as delivered and not acknowledged."""
        wanted = b'"id": ' + json.dumps(self._task_id).encode()
        key = self._prefix + self._channel.unacked_key
        cursor, read, count = 0, 0, FIRST
        while read < MOST and not self._is_late():
            cursor, entries = self._client.hscan(key, cursor, count=count)
            if any(wanted in text for text in entries.values()):
                return True
            read += len(entries)
            if not cursor:
                break
            count = self._next_count(list(entries.values()))
        return False

    def _is_late(self) -> bool:
        return monotonic() > self._ends_at or self._bytes > MOST_BYTES
