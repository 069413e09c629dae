"""One Redis client per channel, where kombu makes two for each message.

A message's delivery and its acknowledgement are noted with a client each, made for just that on
the channel's pool of connections. Making one fills a table of some 170 callbacks (redis-py
issue 3624): 75 us, twice, of the 900 us that a call takes in the worker main process.

Runs in the worker main process. Other transports are left as they are. See also:
:mod:`celery_budgets.worker.transport.redis_polling`.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["keep_client"]


def keep_client(connection: Any) -> Any:
    """Have each channel of *connection*, also of those to come, keep its client; return it.

    A transport whose channels make their clients in a way of their own is left alone.
    """
    transport = connection.transport
    redis = sys.modules.get("kombu.transport.redis")
    made_by = getattr(getattr(transport, "Channel", None), "_create_client", None)
    if redis is None or made_by is not redis.Channel._create_client:
        return connection
    create = transport.create_channel

    def create_channel(connected: Any) -> Any:
        channel = create(connected)
        _keep(channel)
        return channel

    transport.create_channel = create_channel
    # A transport that is connected has made one already.
    for channel in transport.channels:
        _keep(channel)
    return connection


def _keep(channel: Any) -> None:
    """Have *channel* make one client for as long as it has the same pool of connections."""
    if "_create_client" in vars(channel):
        return  # the one that was there, handed out now
    make = channel._create_client
    kept: Any = None

    def create_client(asynchronous: bool = False) -> Any:
        """Return the client of the pool; a new one after a fork, and after a lost connection.

        Mirrors kombu.transport.redis.Channel, whose pool is another one then. Threads may share
        a client: each command takes a connection of its own from the pool.
        """
        nonlocal kept
        if asynchronous:
            return make(asynchronous=True)
        client = kept
        if client is None or client.connection_pool is not channel._pool:
            client = kept = make()
        return client

    channel._create_client = create_client
