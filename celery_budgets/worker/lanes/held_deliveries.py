"""Holds deliveries unacknowledged in the worker, and requeues waiting ones at the broker."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from celery_budgets.model.lanes import Lane
from celery_budgets.worker.lanes.lane_slots import WorkerSlots

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = [
    "MEMORY", "HeldDeliveries", "give_back_soon", "is_waiting", "must_hold", "take_waiting",
]  # fmt: skip


#: Reason of deliveries that the memory gate holds.
MEMORY = "memory"


class HeldDeliveries:
    """Deliveries that are kept unacknowledged in this worker, by reason."""

    def __init__(self) -> None:
        self._held: defaultdict[str, list[Delivery]] = defaultdict(list)
        # Threads of a pool hold some while the event loop takes others.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many are held, for any reason."""
        return sum(map(len, self._held.values()))

    def hold(self, reason: str, request: Delivery) -> None:
        """Keep *request* until the deliveries of *reason* are taken."""
        with self._lock:
            self._held[reason].append(request)

    def take(self, reason: str, lane: Lane | None = None) -> list[Delivery]:
        """Remove and return the deliveries of *reason*, of one lane or all."""
        with self._lock:
            held = self._held.pop(reason, [])
            taken = [request for request in held if _is_of(request, lane)]
            if len(taken) < len(held):
                self._held[reason] = [request for request in held if not _is_of(request, lane)]
        return taken

    def take_first(self, reason: str) -> Delivery | None:
        """Remove and return the delivery that has been held for *reason* longest."""
        with self._lock:
            return self._held[reason].pop(0) if self._held[reason] else None

    def of_id(self, task_id: str) -> list[tuple[str, Delivery]]:
        """Return the held deliveries of *task_id*, each with its reason."""
        with self._lock:
            return [
                (reason, request)
                for reason, held in self._held.items()
                for request in held
                if request.id == task_id
            ]

    def lose_connection(self) -> None:
        """Forget all: the broker redelivers the messages of closed channels."""
        with self._lock:
            self._held.clear()


def must_hold(consumer: Any, request: Delivery) -> bool:
    """Return whether requeueing *request* could exceed the broker's delivery limit.

    A RabbitMQ quorum queue drops a message after its delivery limit, 20 by default. One
    that was delivered before is not handed back again, and so never comes near that.
    """
    if consumer.connection.transport.driver_type != "amqp":
        return False
    queue = consumer.app.amqp.queues.get(request.delivery_info.get("routing_key"))
    arguments = getattr(queue, "queue_arguments", None) or {}
    quorum = arguments.get("x-queue-type") == "quorum"
    return quorum or bool(request.delivery_info.get("redelivered"))


def is_waiting(consumer: Any, request: Delivery) -> bool:
    """Return whether *request* waits for a place in the pool; see :func:`take_waiting`."""
    return any(entry[1] and entry[1][0] is request for entry in list(_waiting(consumer)))


def take_waiting(consumer: Any, slots: WorkerSlots, lane: Lane | None = None) -> list[Delivery]:
    """Take the deliveries that wait for a slot or for a place in the pool, of one lane or all.

    Accesses the waiters of kombu.asynchronous.semaphore.LaxBoundedSemaphore, which
    celery.worker.worker.WorkController._process_task_sem has added: budgeted ones hold a slot of
    their lane by then, and release it here.
    """
    waiting = _waiting(consumer)
    entries = [entry for entry in waiting if entry[1] and _is_of(entry[1][0], lane)]
    for entry in entries:
        waiting.remove(entry)
    taken = [entry[1][0] for entry in entries]
    for request in taken:
        slots.release(request)
    return taken + slots.give_up_held(lane.name if lane is not None else None)


def give_back_soon(requests: Iterable[Any]) -> None:
    """Put what has not started back to the head of its queue, where the broker can be told so.

    Elsewhere the broker hands it out again when the connection closes, which is when all that
    runs has ended.
    """
    tags: dict[Any, list[str]] = {}
    for request in requests:
        message = request.message
        tags.setdefault(message.channel, []).append(message.delivery_tag)
    for channel, waiting in tags.items():
        hand_back = getattr(channel, "hand_back", None)
        if hand_back is not None:
            hand_back(waiting)


def _waiting(consumer: Any) -> Any:
    semaphore = getattr(consumer.controller, "semaphore", None)
    return getattr(semaphore, "_waiting", None) or ()


def _is_of(request: Any, lane: Lane | None) -> bool:
    return hasattr(request, "hand_back") and (lane is None or request.lane.name == lane.name)
