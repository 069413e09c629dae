"""How a worker connects to the broker that it consumes: what is put into that connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from celery_budgets.worker.transport.leftovers import Leftovers
from celery_budgets.worker.transport.redis_client import keep_client
from celery_budgets.worker.transport.redis_polling import reduce_polling

__all__ = ["connect_by"]


def connect_by(
    consumer: Any, transport: str, started: Callable[[], Iterable[Any]] = tuple
) -> Leftovers:
    """Replace Consumer.connection_for_read by one that saves round trips on Redis.

    Args:
        consumer: The Celery consumer.
        transport: ``"budgets"``, or ``"kombu"`` for kombu's own.
        started: Returns the messages of the calls that run on after a lost connection.

    Returns:
        What a lost connection to Redis leaves to the next one.
    """
    leftovers = Leftovers()
    connect = consumer.connection_for_read
    if transport == "budgets":
        connect = _fetching(consumer, leftovers)
        _carry_over(consumer, leftovers, started)
    if consumer.hub is None:
        consumer.connection_for_read = connect
    else:
        consumer.connection_for_read = lambda **options: keep_client(
            reduce_polling(connect(**options))
        )
    return leftovers


def _fetching(consumer: Any, leftovers: Leftovers) -> Any:
    def connection_for_read(heartbeat: float | None = None) -> Any:
        """Mirrors celery.worker.consumer.Consumer, which has no place between its two steps."""
        connection = consumer.app.connection_for_read(heartbeat=heartbeat)
        if connection.get_transport_cls().driver_type == "redis":
            # Not before: an app on RabbitMQ may have no redis-py.
            from celery_budgets.worker.transport.redis_transport import (
                fetch_atomically,
            )

            connection = fetch_atomically(connection, leftovers)
        return consumer.ensure_connected(connection)

    return connection_for_read


def _carry_over(consumer: Any, leftovers: Leftovers, started: Callable[[], Iterable[Any]]) -> None:
    """Have what runs at a lost connection stay in hand.

    Wraps Consumer.on_connection_error_after_connected, which closes the channels, and
    Consumer.on_close, by which the pool drops what has not started (celery.worker.consumer.
    Consumer.start, 5.5 to 5.7). Differs: nothing is handed back before it is known what runs.
    """
    lose, drop = consumer.on_connection_error_after_connected, consumer.on_close

    def on_connection_error_after_connected(exc: BaseException) -> None:
        leftovers.reconnects = True
        try:
            lose(exc)
        finally:
            leftovers.reconnects = False
        if leftovers.in_hand:
            # Celery reduces it by what runs, which counts as in hand itself.
            consumer.initial_prefetch_count = consumer.max_prefetch_count
            consumer._maximum_prefetch_restored = True

    def on_close() -> None:
        drop()
        leftovers.carry(started())

    consumer.on_connection_error_after_connected = on_connection_error_after_connected
    consumer.on_close = on_close
