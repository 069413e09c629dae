"""The last messages that this process has published: their queue, and when.

A broker does not say where a message is, and RabbitMQ cannot be asked without taking it. The
process that has sent a call knows its queue and its time, which tell how many wait before it.

Runs in the sending process. See also: :mod:`celery_budgets.sending.why.asking`, which asks.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

__all__ = ["REMEMBERED", "Sent", "note", "of_queue", "sent"]

#: Most messages that are remembered; some 200 bytes each.
REMEMBERED = 10_000


class Sent(NamedTuple):
    """A message that was published."""

    task_id: str
    #: Its routing key, which is the name of the queue.
    queue: str
    #: Seconds since the epoch.
    sent_at: float
    #: Its ETA, or when it was published, seconds since the epoch.
    due_at: float


# Appending is atomic, and a tuple is made twice as fast as a Sent.
_sent: deque[tuple[str, str, float, float]] = deque(maxlen=REMEMBERED)


def note(task_id: str, queue: str, sent_at: float, due_at: float) -> None:
    """Remember a message."""
    _sent.append((task_id, queue, sent_at, due_at))


def sent(task_id: str) -> Sent | None:
    """Return the last message of *task_id* that this process has sent, if it remembers one."""
    return next((Sent(*each) for each in reversed(_sent.copy()) if each[0] == task_id), None)


def of_queue(queue: str) -> list[Sent]:
    """Return the remembered messages of *queue*, the oldest first."""
    return [Sent(*each) for each in _sent.copy() if each[1] == queue]
