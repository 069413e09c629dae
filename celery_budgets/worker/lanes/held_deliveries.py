"""Deliveries that wait in the worker: which there are, and which may go back to the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_budgets.model.lanes import Lane
from celery_budgets.worker.calls.roster import Roster

if TYPE_CHECKING:
    from celery_budgets.worker.request import BudgetedRequest

__all__ = ["is_waiting", "must_hold", "take_waiting"]


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


def is_waiting(consumer: Any, request: BudgetedRequest) -> bool:
    """Return whether *request* waits for a place in the pool; see :func:`take_waiting`."""
    return any(entry[1] and entry[1][0] is request for entry in list(_waiting(consumer)))


def take_waiting(consumer: Any, roster: Roster, lane: Lane | None = None) -> list[BudgetedRequest]:
    """Take the deliveries that wait for a slot or for a place in the pool, of one lane or all.

    Reaches into kombu.asynchronous.semaphore.LaxBoundedSemaphore, whose waiters are what
    celery.worker.worker.WorkController._process_task_sem put there: budgeted ones have the slot
    of their lane by then, and give it back here.
    """
    waiting = _waiting(consumer)
    entries = [entry for entry in waiting if entry[1] and _is_of(entry[1][0], lane)]
    for entry in entries:
        waiting.remove(entry)
    taken = [entry[1][0] for entry in entries]
    for request in taken:
        roster.leaves(request)
    if roster.slots is not None:
        taken += roster.slots.give_up_held(lane.name if lane is not None else None)
    return taken


def _waiting(consumer: Any) -> Any:
    semaphore = getattr(consumer.controller, "semaphore", None)
    return getattr(semaphore, "_waiting", None) or ()


def _is_of(request: Any, lane: Lane | None) -> bool:
    return hasattr(request, "hand_back") and (lane is None or request.lane.name == lane.name)
