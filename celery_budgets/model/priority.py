"""Priorities: three levels that mean the same on Redis and on RabbitMQ.

Redis serves the lowest number first and RabbitMQ the highest; a message without a number comes
first on Redis and last on RabbitMQ. So every message gets a number, depending on the broker.

RabbitMQ serves a lower number only when no higher one waits, so low priorities can starve. There
the calls of low priority wait in a queue of their own, from which a worker consumes when its lane
is idle, or when none of them has started for long
(:mod:`celery_budgets.worker.lanes.low_priority`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from celery_budgets.errors import ConfigurationError, nearest

__all__ = [
    "LOW_SUFFIX", "MAX_PRIORITY", "Broker", "Priority", "addresses", "level_of",
    "low_queue", "number_of",
]  # fmt: skip

#: Highest number on RabbitMQ: the queue's ``x-max-priority``.
MAX_PRIORITY = 9
#: Suffix of the queue that holds a queue's calls of low priority, on RabbitMQ.
LOW_SUFFIX = ".low"


def addresses(url: Any) -> list[str]:
    """Return the addresses in a broker URL, which may list several for fail-over, as kombu does."""
    given = [url] if isinstance(url, str) else list(url or ())
    return [part.strip() for each in given for part in str(each).split(";") if part.strip()]


class Priority(StrEnum):
    """The priority of a call within its lane."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @classmethod
    def named(cls, word: Any, whose: str) -> Priority:
        """Return the priority named *word*.

        Raises:
            ConfigurationError: There is none of that name; *whose* names the setting or lane.
        """
        try:
            return cls(word)
        except ValueError:
            known = nearest(str(word), [level.value for level in cls])
            raise ConfigurationError(f"{whose}: priority {word!r} is not known; {known}") from None


class Broker(StrEnum):
    """The brokers whose priorities are supported."""

    REDIS = "redis"
    RABBITMQ = "rabbitmq"

    @classmethod
    def of(cls, app: Any) -> Broker | None:
        """Return the kind of broker that *app* sends to; ``None`` if it has no priorities."""
        return cls.at(app.conf.broker_write_url)

    @classmethod
    def at(cls, url: Any) -> Broker | None:
        """Return the kind of broker at *url*, or at the first of several addresses."""
        url = (addresses(url) or [""])[0]
        if url.startswith(("redis", "rediss", "sentinel", "valkey")):
            return cls.REDIS
        return cls.RABBITMQ if url.startswith(("amqp", "pyamqp")) or not url else None


#: Number of a message by broker and priority; on Redis one of kombu's steps (0, 3, 6, 9).
_NUMBERS = {
    Broker.REDIS: {Priority.HIGH: 0, Priority.NORMAL: 3, Priority.LOW: 9},
    Broker.RABBITMQ: {Priority.HIGH: 9, Priority.NORMAL: 5, Priority.LOW: 1},
}


def number_of(priority: Priority, broker: Broker) -> int:
    """Return the number of a message of *priority* on *broker*."""
    return _NUMBERS[broker][priority]


def level_of(number: int | str | None, broker: Broker) -> Priority:
    """Return the priority closest to *number* on *broker*.

    A word that a sender did not convert counts as that priority; any other text is normal.
    """
    if isinstance(number, str):
        return Priority(number) if number in set(Priority) else Priority.NORMAL
    number = number or 0
    if broker is Broker.REDIS:
        return Priority.HIGH if number < 3 else Priority.NORMAL if number < 9 else Priority.LOW
    return Priority.HIGH if number >= 9 else Priority.NORMAL if number > 1 else Priority.LOW


def low_queue(queue: str) -> str:
    """Return the name of the queue that holds the low-priority calls of *queue* on RabbitMQ."""
    return queue + LOW_SUFFIX
