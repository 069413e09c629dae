"""One connection of a channel to Redis whose replies the event loop waits for.

kombu has one for each channel, which blocks in BRPOP. A channel of ours has one for what is
answered at once, and one for each list of messages that it waits on.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import Any

from kombu.transport import redis

__all__ = ["Line"]


class Line:
    """Sends one command, and reads its reply once there is one.

    kombu's poller takes it for a client: it looks at ``connection`` and ``connection_pool``.

    Args:
        channel: A channel of kombu.transport.redis.
        kind: The name of what handles its replies, in the channel's ``handlers``.
    """

    def __init__(self, channel: Any, kind: str) -> None:
        self._channel = channel
        self.kind = kind
        self.connection: Any = None
        #: Has a command been sent whose reply is not read yet?
        self.waits = False
        self.sent_at = 0.0

    @property
    def connection_pool(self) -> Any:
        """Where the poller gets a connection for it (MultiChannelPoller._client_registered)."""
        return self._channel.async_pool

    def send(self, command: Iterable[Any]) -> None:
        """Send *command*; connect before, and have the event loop listen, where need be."""
        poller = self._channel.connection.cycle
        if not poller._client_registered(self._channel, self, self.kind):
            poller._register(self._channel, self, self.kind)
        connection = self.connection
        if getattr(connection, "_re_auth_token", None) is not None:
            self._authenticate()
        connection.send_packed_command(connection.pack_command(*command))
        self.waits = True
        self.sent_at = monotonic()

    def _authenticate(self) -> None:
        """Send credentials that have been renewed, as Channel._flush_brpop_reauth does (5.7).

        Where they are refused a new connection has those of then.
        """
        connection = self.connection
        try:
            connection.re_auth()
        except (*self._channel.connection_errors, self._channel.ResponseError):
            connection.set_re_auth_token(None)
            connection.disconnect()
            self._channel.connection.cycle._register(self._channel, self, self.kind)

    def receive(self) -> Any:
        """Return the reply; hang up where the connection fails, as Channel._brpop_read does.

        Raises:
            redis.exceptions.RedisError: It failed, or Redis answered with an error.
        """
        self.waits = False
        try:
            return self.connection.read_response()
        except self._channel.connection_errors:
            self.hang_up()
            raise

    def is_readable(self) -> bool:
        """Return whether a reply is there."""
        sock = getattr(self.connection, "_sock", None)
        return sock is not None and bool(redis._socket_readable(sock))

    def was_closed(self) -> bool:
        """Return whether the server has closed it: it is readable, and has asked for nothing."""
        if self.waits:
            return False
        self.hang_up()
        if not hasattr(self._channel.connection.cycle, "_paused_brpop"):
            # Before 5.7 kombu leaves the event loop whenever a connection ends.
            raise ConnectionError("Redis has closed an idle connection")
        return True

    def hang_up(self) -> None:
        """Close the connection; the next :meth:`send` connects anew."""
        self.waits = False
        if self.connection is not None:
            self.connection.disconnect()

    def close(self) -> None:
        """Close the connection for good."""
        connection, self.connection = self.connection, None
        self.waits = False
        if connection is not None:
            connection.disconnect()
