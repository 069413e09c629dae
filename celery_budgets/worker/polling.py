"""What the event loop does for a connection to Redis that only waits, at each of its turns: little.

At each turn kombu goes through all channels, and tells the loop anew of each one's socket: a
system call that fails, because the socket is known. With a channel for each lane that is most of
what a further lane costs. Here it passes over a channel whose BRPOP is under way, and over a
socket that the loop knows.

Runs in the worker main process, on the pools with an event loop. Other transports and pools are
left as they are. See also: :mod:`celery_budgets.worker.lane_consumer`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["lighten"]


def lighten(connection: Any) -> Any:
    """Make the event loop's turns cheap for *connection*, before that joins the loop; return it.

    Relies on kombu.transport.redis (5.5 to 5.7): Transport.register_with_event_loop makes the loop
    call MultiChannelPoller.on_poll_start at each turn, which goes through ``_channels``, and add
    a reader for each of ``fds``. A new socket is registered by kombu itself, whatever its number.
    """
    redis = sys.modules.get("kombu.transport.redis")
    transport = connection.transport
    cycle: Any = getattr(transport, "cycle", None)
    if redis is None or type(cycle) is not redis.MultiChannelPoller:
        return connection
    start, join = cycle.on_poll_start, transport.register_with_event_loop

    def join_lightly(connected: Any, loop: Any) -> None:
        cycle.on_poll_start = lambda: _visit(cycle, start)
        join(connected, _Loop(loop))

    transport.register_with_event_loop = join_lightly
    return connection


def _visit(cycle: Any, start: Callable[[], None]) -> None:
    """Run *start*, on_poll_start of *cycle*, for those channels that it has something to do for."""
    channels = cycle._channels
    cycle._channels = {channel for channel in channels if not _waits(cycle, channel)}
    try:
        start()
    finally:
        cycle._channels = channels


def _waits(cycle: Any, channel: Any) -> bool:
    """Say whether the BRPOP of *channel* is under way: what on_poll_start asks at greater cost."""
    connection = channel._in_poll
    if not connection or connection._sock is None or channel.active_fanout_queues:
        return False
    # Not the attribute, which makes a client where there is none.
    return (channel, vars(channel).get("client"), "BRPOP") in cycle._chan_to_sock


class _Loop:
    """The event loop as one transport sees it: it is told of a socket once."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def add_reader(self, fd: int, callback: Callable[..., Any], *args: Any) -> None:
        """Read *fd* with *callback*, where the loop does not do so yet."""
        if self._loop.readers.get(fd) != (callback, args):
            self._loop.add_reader(fd, callback, *args)
