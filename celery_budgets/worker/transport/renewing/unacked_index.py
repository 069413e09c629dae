"""The index of deliveries that kombu keeps in Redis, as a thread of our own writes to it.

kombu notes each delivery's tag with the time in a sorted set, and whoever finds one older than its
visibility timeout hands the message out again. Here the time of what is in hand is set anew.

A connection of its own: those of the event loop belong to it. It is made as the channel's own is,
so credentials, TLS, Sentinel, Unix sockets and ``global_keyprefix`` are as everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery_budgets.worker.transport.holder import holder_of

__all__ = ["UnackedIndex", "has_index"]

#: Tags in one command.
AT_ONCE = 1000


def has_index(channel: Any) -> bool:
    """Return whether *channel* is kombu's for Redis, or one like it, and notes its deliveries."""
    return bool(getattr(channel, "ack_emulation", False)) and hasattr(channel, "unacked_index_key")


class UnackedIndex:
    """Writes to the index that *channel* uses.

    Args:
        channel: A channel of kombu.transport.redis; read here, and not used later.
        timeout: How long the server may take to answer, seconds, where the app does not say.
    """

    def __init__(self, channel: Any, timeout: float) -> None:
        from redis import Redis

        # Relies on kombu.transport.redis.Channel._get_pool (5.5 to 5.7), and on its keeping the
        # last Sentinel to close it later.
        sentinel = getattr(channel, "_sentinel_manager", None)
        with _impatient(channel, timeout):
            self._pool = channel._get_pool()
        self._sentinel = getattr(channel, "_sentinel_manager", None)
        if hasattr(channel, "_sentinel_manager"):
            channel._sentinel_manager = sentinel
        provider = self._pool.connection_kwargs.get("credential_provider")
        more = {} if provider is None else {"credential_provider": provider}
        self.client: Any = Redis(connection_pool=self._pool, **more)
        #: Before each key.
        self.prefix = str(channel.global_keyprefix or "")
        self._key = self.prefix + channel.unacked_index_key
        self._messages = self.prefix + channel.unacked_key

    def scores(self, tags: Sequence[str]) -> list[float | None]:
        """Return the time of each of *tags*; ``None`` for those acknowledged or handed out again.

        Raises:
            redis.exceptions.RedisError: The server does not answer, or refuses.
        """
        found: list[float | None] = []
        for some in _portions(tags):
            found += self.client.zmscore(self._key, some)
        return found

    def renew(self, tags: Sequence[str], score: float) -> None:
        """Set the time of *tags* to *score*, of those that still stand in the index.

        Raises:
            redis.exceptions.RedisError: The server does not answer, or refuses.
        """
        with self.client.pipeline(transaction=False) as pipe:
            for some in _portions(tags):
                pipe.zadd(self._key, dict.fromkeys(some, score), xx=True)
            pipe.execute()

    def held_by(self, holder: int, before: float) -> list[str]:
        """Return tags whose time is up to *before* and says that *holder* wrote it, the oldest.

        Raises:
            redis.exceptions.RedisError: The server does not answer, or refuses.
        """
        old = self.client.zrangebyscore(
            self._key, "-inf", before, start=0, num=AT_ONCE, withscores=True
        )
        return [tag.decode() for tag, score in old if holder_of(score) == holder]

    def acknowledge(self, tags: Sequence[str]) -> None:
        """Remove *tags* and their messages, as kombu.transport.redis.QoS does.

        Raises:
            redis.exceptions.RedisError: The server does not answer, or refuses.
        """
        with self.client.pipeline(transaction=True) as pipe:
            for some in _portions(tags):
                pipe.zrem(self._key, *some)
                pipe.hdel(self._messages, *some)
            pipe.execute()

    def close(self) -> None:
        """Close the connection."""
        self._pool.disconnect()
        close = getattr(self._sentinel, "close", None)
        if close is not None:
            close()


def _portions(tags: Sequence[str]) -> Iterator[Sequence[str]]:
    return (tags[start : start + AT_ONCE] for start in range(0, len(tags), AT_ONCE))


@contextmanager
def _impatient(channel: Any, timeout: float) -> Iterator[None]:
    """Have connections that *channel* describes meanwhile not wait for ever."""
    names = [name for name in _TIMEOUTS if getattr(channel, name, None) is None]
    for name in names:
        setattr(channel, name, timeout)
    try:
        yield
    finally:
        for name in names:
            setattr(channel, name, None)


_TIMEOUTS = ("socket_timeout", "socket_connect_timeout")
