"""Reads queues on RabbitMQ: a passive declaration tells how many messages are ready.

RabbitMQ shows no message without delivering it, so how old they are remains unknown here.

Runs in a thread of the worker main process, by a connection of its own, which is there only while
this worker reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["AmqpQueues"]

#: Reply code for a queue that does not exist.
NOT_FOUND = 404


class AmqpQueues:
    """Reads the queues of one worker.

    Args:
        connection: The worker's connection; read here, and not used later.
        timeout: How long the broker may take to answer, seconds.
    """

    #: Whether messages can be looked at.
    shows_messages = False

    def __init__(self, connection: Any, timeout: float) -> None:
        options = {
            **connection.transport_options,
            "read_timeout": timeout,
            "write_timeout": timeout,
        }
        # Without heartbeats: nobody would send them between two readings.
        self._connection = connection.clone(
            heartbeat=0, connect_timeout=timeout, transport_options=options
        )
        self._channel: Any = None

    def read(self, queues: Iterable[str]) -> dict[str, tuple[int, float | None]]:
        """Return for each queue its number of messages; without those that do not exist.

        Raises:
            Exception: The broker does not answer, or refuses.
        """
        found: dict[str, tuple[int, float | None]] = {}
        for queue in queues:
            messages = self._messages_in(queue)
            if messages is not None:
                found[queue] = messages, None
        return found

    def _messages_in(self, queue: str) -> int | None:
        try:
            if self._channel is None:
                self._channel = self._connection.connect().channel()
            declared = self._channel.queue_declare(queue, passive=True)
        except Exception as exc:
            # The broker closes the channel of a declaration that it refuses.
            self._channel = None
            if getattr(exc, "reply_code", None) == NOT_FOUND:
                return None
            self.close()
            raise
        return int(declared.message_count)

    def rest(self) -> None:
        """Close the connection while others read."""
        if self._channel is not None:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel = None
        self._connection.close()
