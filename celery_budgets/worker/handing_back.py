"""When a delivery may go back to the broker, and when it has to be kept instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_budgets.worker.request import BudgetedRequest

__all__ = ["must_hold"]


def must_hold(consumer: Any, request: BudgetedRequest) -> bool:
    """Say whether handing back could use up the deliveries that the broker allows.

    A RabbitMQ quorum queue drops a message after its delivery limit, 20 by default. One
    that was delivered before is not handed back again, and so never comes near that.
    """
    if consumer.connection.transport.driver_type != "amqp":
        return False
    queue = consumer.app.amqp.queues.get(request.delivery_info.get("routing_key"))
    arguments = getattr(queue, "queue_arguments", None) or {}
    quorum = arguments.get("x-queue-type") == "quorum"
    return quorum or bool(request.delivery_info.get("redelivered"))
