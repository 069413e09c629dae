"""Priorities: three words that mean the same on Redis and on RabbitMQ.

Redis serves the lowest number first and RabbitMQ the highest; a message without a number is the
first on one and the last on the other. So every message is given a number, by its broker.

RabbitMQ serves a lower number only when no higher one waits, and so for ever never. There the
calls of low priority wait in a queue of their own, which a worker turns to when its lane is idle,
or when none of them has started for long (:mod:`celery_budgets.worker.lanes.low_priority`).
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
#: Behind a queue's name: the queue of its calls of low priority, on RabbitMQ.
LOW_SUFFIX = ".low"


def addresses(url: Any) -> list[str]:
    """Return the addresses of a broker, others for fail-over, as kombu.Connection takes them."""
    given = [url] if isinstance(url, str) else list(url or ())
    return [part.strip() for each in given for part in str(each).split(";") if part.strip()]


class Priority(StrEnum):
    """How urgent a call is among those of its lane."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @classmethod
    def named(cls, word: Any, whose: str) -> Priority:
        """Return the priority *word* names.

        Raises:
            ConfigurationError: There is none of that name; *whose* says where it stands.
        """
        try:
            return cls(word)
        except ValueError:
            known = nearest(str(word), [level.value for level in cls])
            raise ConfigurationError(f"{whose}: priority {word!r} is not known; {known}") from None


class Broker(StrEnum):
    """The brokers that have priorities."""

    REDIS = "redis"
    RABBITMQ = "rabbitmq"

    @classmethod
    def of(cls, app: Any) -> Broker | None:
        """Return the kind of broker that *app* sends to; ``None``: one without priorities."""
        return cls.at(app.conf.broker_write_url)

    @classmethod
    def at(cls, url: Any) -> Broker | None:
        """Return the kind of broker at *url*, the first where there are several."""
        url = (addresses(url) or [""])[0]
        if url.startswith(("redis", "rediss", "sentinel", "valkey")):
            return cls.REDIS
        return cls.RABBITMQ if url.startswith(("amqp", "pyamqp")) or not url else None


#: The number of a message. Redis' are among kombu's steps (0, 3, 6, 9).
_NUMBERS = {
    Broker.REDIS: {Priority.HIGH: 0, Priority.NORMAL: 3, Priority.LOW: 9},
    Broker.RABBITMQ: {Priority.HIGH: 9, Priority.NORMAL: 5, Priority.LOW: 1},
}


def number_of(priority: Priority, broker: Broker) -> int:
    """Return what a message of *priority* carries on *broker*."""
    return _NUMBERS[broker][priority]


def level_of(number: int | str | None, broker: Broker) -> Priority:
    """Return the priority that *number* comes nearest to on *broker*.

    A word that some sender has left as it is counts as that; anything else is normal.
    """
    if isinstance(number, str):
        return Priority(number) if number in set(Priority) else Priority.NORMAL
    number = number or 0
    if broker is Broker.REDIS:
        return Priority.HIGH if number < 3 else Priority.NORMAL if number < 9 else Priority.LOW
    return Priority.HIGH if number >= 9 else Priority.NORMAL if number > 1 else Priority.LOW


def low_queue(queue: str) -> str:
    """Return the name of the queue in which the low calls of *queue* wait on RabbitMQ."""
    return queue + LOW_SUFFIX
