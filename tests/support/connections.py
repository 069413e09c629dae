"""Connections that a broker closes, as when a network or a server fails."""

from __future__ import annotations

from redis import Redis

from tests.support.rabbitmq import rabbitmqctl


def cut_connections(broker_url: str) -> None:
    """Have the broker close every connection of a test's workers."""
    if broker_url.startswith("amqp"):
        host = broker_url.rpartition("/")[2]
        assert rabbitmqctl("close_all_connections", "-p", host, "the test says so")
        return
    with Redis.from_url(broker_url) as redis:
        database, own = str(redis.connection_pool.connection_kwargs["db"]), redis.client_id()
        for client in redis.client_list():
            if client["db"] == database and int(client["id"]) != own:
                redis.client_kill_filter(_id=client["id"])
