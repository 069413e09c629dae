"""The transport of a worker's own connection to Redis, in place of kombu's.

Only the connection by which the worker consumes has it: whoever sends goes kombu's way, and
every message and key is as kombu has it. The setting ``budgets_redis_transport`` turns it off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from kombu.transport import redis

from celery_budgets.worker.transport.fetching import FetchingChannel
from celery_budgets.worker.transport.holder import ANYBODY
from celery_budgets.worker.transport.leftovers import Leftovers
from celery_budgets.worker.transport.poller import FetchingPoller
from celery_budgets.worker.transport.scripts import FETCH

__all__ = ["fetch_atomically"]

logger = logging.getLogger(__name__)

_SentinelChannel: Any = redis.SentinelChannel
_Transport: Any = redis.Transport
_SentinelTransport: Any = redis.SentinelTransport


class BudgetsSentinelChannel(FetchingChannel, _SentinelChannel):
    """A channel to the primary that Sentinel names."""


class BudgetsTransport(_Transport):
    """A connection to Redis."""

    Channel = FetchingChannel
    #: Set for each connection (:func:`fetch_atomically`).
    leftovers: Leftovers

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Is there an event loop, which gives each channel its turns?
        self.in_event_loop = False
        #: Does Redis run our scripts? Not known before the first channel.
        self.may_fetch = True
        self.cycle = FetchingPoller()

    def establish_connection(self) -> Any:
        """Connect; see first what Redis allows, then to what the connection before has left."""
        connected = super().establish_connection()
        channel = self._avail_channels[-1]
        self._look_what_is_allowed(channel)
        if self.may_fetch:
            self._tell_leftovers(channel)
        channel._choose_way()
        return connected

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Join the event loop: acknowledgements wait for its turns from now on."""
        self.in_event_loop = True
        super().register_with_event_loop(connection, loop)

    def leave_event_loop(self) -> None:
        """Acknowledge at once from now on, and what waits for a turn: there is none any more."""
        self.in_event_loop = False
        for channel in list(self.channels or ()):
            channel.settle_rest()

    def _look_what_is_allowed(self, channel: Any) -> None:
        try:
            channel.run(FETCH, [], [0, ANYBODY, 0, 0, 0])
            index = channel.key(channel.unacked_index_key)
            try:
                # Redis 6.2 cuts a millisecond to 0, and waits for ever.
                channel.ask("BLMOVE", index, index, "RIGHT", "RIGHT", 0.01)
            except channel.ResponseError as exc:
                if "WRONGTYPE" not in str(exc):  # it is known, and is allowed
                    raise
        except channel.ResponseError as exc:
            self.may_fetch = False
            logger.warning("budgets.redis_transport_refused error=%s", exc)

    def _tell_leftovers(self, channel: Any) -> None:
        left = self.leftovers
        left.settle(channel)
        if left.in_hand and channel.qos.hand_back(list(left.in_hand)):
            left.in_hand = {}


class BudgetsSentinelTransport(BudgetsTransport, _SentinelTransport):
    """A connection to the primary that Sentinel names."""

    Channel = BudgetsSentinelChannel


def fetch_atomically(connection: Any, leftovers: Leftovers) -> Any:
    """Have *connection*, not connected yet, use our transport where it would use kombu's.

    Also after a fail-over to another address (kombu.Connection.switch).
    """
    find: Callable[[], Any] = connection.get_transport_cls

    def get_transport_cls() -> Any:
        found = find()
        ours = _OURS.get(found)
        return found if ours is None else type(ours.__name__, (ours,), {"leftovers": leftovers})

    connection.get_transport_cls = get_transport_cls
    return connection


_OURS = {redis.Transport: BudgetsTransport, redis.SentinelTransport: BudgetsSentinelTransport}
