"""What the event loop does for a connection to Redis that only waits, at each of its turns: little.

At each turn kombu goes through all channels, and tells the loop anew of each one's socket: a
system call that fails, because the socket is known. With a channel for each lane that is most of
what a further lane costs. Here it passes over a channel whose BRPOP is under way, and, but for one
turn each second, over a socket that the loop knows.

Runs in the worker main process, on the pools with an event loop. Other transports and pools are
left as they are. See also: :mod:`celery_budgets.worker.lanes.lane_consumer`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

__all__ = ["reduce_polling"]

#: How long the loop may go without being told of its sockets.
RETOLD_SECONDS = 1.0


def reduce_polling(connection: Any) -> Any:
    """Make the event loop's turns cheap for *connection*, before that joins the loop; return it.

    Relies on kombu.transport.redis (5.7): Transport.register_with_event_loop has the loop call at
    each turn what calls MultiChannelPoller.on_poll_start, which goes through ``_channels``, and
    adds a reader for each of ``fds``; a lost socket is taken out of the loop, and a new one is
    registered by kombu itself. Earlier ones leave lost sockets in the loop, so they are left as
    they are.
    """
    transport = connection.transport
    cycle: Any = getattr(transport, "cycle", None)
    if not _is_known(cycle):
        return connection
    join = transport.register_with_event_loop

    def join_lightly(connected: Any, loop: Any) -> None:
        join(connected, _Loop(loop, cycle))

    transport.register_with_event_loop = join_lightly
    return connection


def _is_known(cycle: Any) -> bool:
    redis = sys.modules.get("kombu.transport.redis")
    return (
        redis is not None
        and (type(cycle) is redis.MultiChannelPoller or hasattr(cycle, "turns_are_cheap"))
        and hasattr(redis.Channel, "_in_poll")
        and all(
            hasattr(cycle, name) for name in ("_channels", "_chan_to_sock", "_paused_brpop", "fds")
        )
    )


class _Loop:
    """The event loop as one transport sees it: what that has it call at each turn is replaced."""

    def __init__(self, loop: Any, cycle: Any) -> None:
        self._loop = loop
        self.on_tick = _Ticks(loop, cycle)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


class _Ticks:
    """Stands for the set of what the loop calls at each turn."""

    def __init__(self, loop: Any, cycle: Any) -> None:
        self._loop = loop
        self._cycle = cycle

    def add(self, turn: Callable[[], None]) -> None:
        """Have the loop call a lighter *turn*."""
        self._loop.on_tick.add(_Turn(turn, self._cycle, self._loop.readers))


class _Turn:
    """What the loop does for one transport at each of its turns.

    Args:
        whole: kombu's own, which does everything.
        cycle: The poller of the transport.
        readers: Of the loop: callback and arguments by descriptor.
    """

    def __init__(self, whole: Callable[[], None], cycle: Any, readers: Mapping[int, Any]) -> None:
        self._whole = whole
        self._cycle = cycle
        self._readers = readers
        #: The readers of the transport's sockets, as the loop was told of them last.
        self._told: dict[int, Any] = {}
        self._retold_at = 0.0

    def __call__(self) -> None:
        """Look after the channels that do not just wait; tell the loop of sockets that are new.

        In one turn each second everything is told anew: a child that closes the loop it has
        inherited takes the sockets out of this one's epoll.
        """
        now = monotonic()
        if now >= self._retold_at:
            self._retold_at = now + RETOLD_SECONDS
            self._tell()
            return
        self._visit()
        told = self._told
        if told.keys() != self._cycle.fds.keys() or not told.items() <= self._readers.items():
            self._tell()

    def _tell(self) -> None:
        self._whole()
        known = self._cycle.fds.keys() & self._readers.keys()
        self._told = {fd: self._readers[fd] for fd in known}

    def _visit(self) -> None:
        """Have on_poll_start go through those channels that it has something to do for."""
        cycle = self._cycle
        if hasattr(cycle, "turns_are_cheap"):
            cycle.on_poll_start()
            return
        channels, sockets = cycle._channels, cycle._chan_to_sock
        visited = set()
        for channel in channels:
            connection = channel._in_poll
            waits = (
                # What on_poll_start asks at greater cost: is its BRPOP under way?
                connection and connection._sock is not None and not channel.active_fanout_queues
                # Not the attribute, which makes a client where there is none.
                and (channel, vars(channel).get("client"), "BRPOP") in sockets
            )  # fmt: skip
            if not waits:
                visited.add(channel)
        cycle._channels = visited.copy()
        try:
            cycle.on_poll_start()
        finally:
            channels ^= visited ^ cycle._channels  # what has come or gone meanwhile
            cycle._channels = channels
