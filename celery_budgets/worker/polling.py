"""What the event loop does for a connection to Redis that only waits, at each of its turns: little.

At each turn kombu goes through all channels, and tells the loop anew of each one's socket: a
system call that fails, because the socket is known. With a channel for each lane that is most of
what a further lane costs. Here it passes over a channel whose BRPOP is under way, and, but for one
turn each second, over a socket that the loop knows.

Runs in the worker main process, on the pools with an event loop. Other transports and pools are
left as they are. See also: :mod:`celery_budgets.worker.lane_consumer`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

__all__ = ["lighten"]

#: How long the loop may go without being told of its sockets.
RETOLD_SECONDS = 1.0


def lighten(connection: Any) -> Any:
    """Make the event loop's turns cheap for *connection*, before that joins the loop; return it.

    Relies on kombu.transport.redis (5.7): Transport.register_with_event_loop makes the loop call
    MultiChannelPoller.on_poll_start at each turn, which goes through ``_channels``, and add a
    reader for each of ``fds``; a lost socket is taken out of the loop, and a new one is registered
    by kombu itself. Earlier ones leave lost sockets in the loop, so they are left as they are.
    """
    transport = connection.transport
    cycle: Any = getattr(transport, "cycle", None)
    if not _is_known(cycle):
        return connection
    start, join = cycle.on_poll_start, transport.register_with_event_loop

    def join_lightly(connected: Any, loop: Any) -> None:
        ours = _Loop(loop)

        def turn() -> None:
            ours.turn()
            _visit(cycle, start)

        cycle.on_poll_start = turn
        join(connected, ours)

    transport.register_with_event_loop = join_lightly
    return connection


def _is_known(cycle: Any) -> bool:
    redis = sys.modules.get("kombu.transport.redis")
    return (
        redis is not None
        and type(cycle) is redis.MultiChannelPoller
        and hasattr(redis.Channel, "_in_poll")
        and all(hasattr(cycle, name) for name in ("_channels", "_chan_to_sock", "_paused_brpop"))
    )


def _visit(cycle: Any, start: Callable[[], None]) -> None:
    """Run *start*, on_poll_start of *cycle*, for those channels that it has something to do for."""
    channels = cycle._channels
    visited = {channel for channel in channels if not _waits(cycle, channel)}
    cycle._channels = visited.copy()
    try:
        start()
    finally:
        channels ^= visited ^ cycle._channels  # what has come or gone meanwhile
        cycle._channels = channels


def _waits(cycle: Any, channel: Any) -> bool:
    """Say whether the BRPOP of *channel* is under way: what on_poll_start asks at greater cost."""
    connection = channel._in_poll
    if not connection or connection._sock is None or channel.active_fanout_queues:
        return False
    # Not the attribute, which makes a client where there is none.
    return (channel, vars(channel).get("client"), "BRPOP") in cycle._chan_to_sock


class _Loop:
    """The event loop as one transport sees it: it is told of a socket once a second."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._trusted = False
        self._trusted_until = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def turn(self) -> None:
        """Begin a turn; in one each second everything is told anew.

        A child that closes the loop it has inherited takes the sockets out of this one's epoll.
        """
        now = monotonic()
        self._trusted = now < self._trusted_until
        if not self._trusted:
            self._trusted_until = now + RETOLD_SECONDS

    def add_reader(self, fd: int, callback: Callable[..., Any], *args: Any) -> None:
        """Read *fd* with *callback*, where the loop does not do so yet."""
        if not self._trusted or self._loop.readers.get(fd) != (callback, args):
            self._loop.add_reader(fd, callback, *args)
