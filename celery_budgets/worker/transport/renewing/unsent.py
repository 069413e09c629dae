"""Acknowledgements that could not be sent at once, and are sent from the thread that renews.

kombu gives up where a channel's connections are all in use, as they are on gevent when more than
ten calls end at a time, or where the server does not answer. The message would be in hand, and be
renewed, until the worker ends; and then its call would run once more.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from kombu.transport import virtual

__all__ = ["Unsent"]

logger = logging.getLogger(__name__)


class Unsent:
    """Takes the place of QoS.ack and QoS.reject of kombu.transport.redis (5.5 to 5.7).

    Differs where the server cannot be told: then it is told later, and nothing is raised.
    """

    def __init__(self) -> None:
        self._tags: deque[str] = deque()

    def __bool__(self) -> bool:
        return bool(self._tags)

    def join(self, qos: Any) -> None:
        """Have *qos* keep what it cannot send."""
        acknowledge, reject, errors = qos.ack, qos.reject, qos.channel.connection_errors

        def ack(delivery_tag: str) -> None:
            try:
                acknowledge(delivery_tag)
            except errors as exc:
                logger.debug("budgets.acknowledged_later tag=%s: %s", delivery_tag, exc)
                virtual.QoS.ack(qos, delivery_tag)
                self._tags.append(delivery_tag)

        def reject_or_ack(delivery_tag: str, requeue: bool = False) -> None:
            if not requeue:
                ack(delivery_tag)
                return
            try:
                reject(delivery_tag, requeue=True)
            except errors as exc:
                # Not in hand any more, it is not renewed, and so comes again.
                logger.debug("budgets.requeued_later tag=%s: %s", delivery_tag, exc)
                virtual.QoS.ack(qos, delivery_tag)

        qos.ack, qos.reject = ack, reject_or_ack

    def send(self, index: Any) -> None:
        """Send what there is, by *index*; keep it where that fails.

        Raises:
            redis.exceptions.RedisError: The server does not answer, or refuses.
        """
        while self._tags:
            tags = list(self._tags)
            index.acknowledge(tags)
            for _ in tags:
                self._tags.popleft()
