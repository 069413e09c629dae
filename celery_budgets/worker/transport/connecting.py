"""How a worker connects to the broker that it consumes: what is put into that connection."""

from __future__ import annotations

from typing import Any

from celery_budgets.worker.transport.redis_client import keep_client
from celery_budgets.worker.transport.redis_polling import reduce_polling

__all__ = ["connect_by"]


def connect_by(consumer: Any, transport: str) -> None:
    """Replace Consumer.connection_for_read by one that saves round trips on Redis.

    Args:
        consumer: The Celery consumer.
        transport: ``"budgets"``, or ``"kombu"`` for kombu's own.
    """
    connect = consumer.connection_for_read
    if transport == "budgets":
        connect = _fetching(consumer)
    if consumer.hub is None:
        consumer.connection_for_read = connect
    else:
        consumer.connection_for_read = lambda **options: keep_client(
            reduce_polling(connect(**options))
        )


def _fetching(consumer: Any) -> Any:
    leftovers: Any = None

    def connection_for_read(heartbeat: float | None = None) -> Any:
        """Mirrors celery.worker.consumer.Consumer, which has no place between its two steps."""
        nonlocal leftovers
        connection = consumer.app.connection_for_read(heartbeat=heartbeat)
        if connection.get_transport_cls().driver_type == "redis":
            # Not before: an app on RabbitMQ may have no redis-py.
            from celery_budgets.worker.transport.deliveries import Leftovers
            from celery_budgets.worker.transport.redis_transport import (
                fetch_atomically,
            )

            leftovers = leftovers or Leftovers()
            connection = fetch_atomically(connection, leftovers)
        return consumer.ensure_connected(connection)

    return connection_for_read
