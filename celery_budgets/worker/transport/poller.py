"""The poller of a transport whose channels fetch: it has each send what is due at its turn."""

from __future__ import annotations

from time import monotonic
from typing import Any

from kombu.transport import redis

__all__ = ["FetchingPoller"]

_Poller: Any = redis.MultiChannelPoller


class FetchingPoller(_Poller):
    """As kombu.transport.redis.MultiChannelPoller, for channels of ours.

    Differs: a channel that has no room for messages still reads replies, for what it awaits is
    no message that it would have to keep.
    """

    #: It passes over what only waits (redis_polling).
    turns_are_cheap = True

    def on_poll_start(self) -> None:
        """Have each channel send; kombu's own way for one that pops, and for fanout."""
        if any(channel.pops for channel in self._channels):
            super().on_poll_start()
        for channel in list(self._channels):
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)
            channel.turn()

    def _register_BRPOP(self, channel: Any) -> None:  # noqa: N802  kombu's name
        if channel.pops:
            super()._register_BRPOP(channel)
        else:
            channel.turn()  # before 5.7 drain_events comes here, and not to on_poll_start

    def on_readable(self, fileno: int) -> Any:
        """Have the channel read the reply that has come."""
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if channel is not None and kind not in ("BRPOP", "LISTEN"):
            return channel.handlers[kind]()
        return super().on_readable(fileno)

    def maybe_check_brpop_health(self) -> None:
        """Drop connections that owe a reply for too long; called by kombu since 5.7."""
        super().maybe_check_brpop_health()
        now = monotonic()
        for channel in list(self._channels):
            channel.drop_stale(now)
