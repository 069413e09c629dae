"""Normalises the forms in which a program may give queues and routes to Celery.

Used in every process that has the app.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from kombu.entity import Exchange, Queue

from celery_budgets.errors import ConfigurationError
from celery_budgets.model.priority import MAX_PRIORITY, Broker, low_queue

if TYPE_CHECKING:
    from celery_budgets.config.settings import Settings
    from celery_budgets.model.lanes import Lane, Lanes

__all__ = [
    "as_tuple", "declared_queues", "lane_queues", "lanes_of_queues", "queue_names", "real_names",
]  # fmt: skip


def declared_queues(declared: Any) -> dict[str, Queue]:
    """Return the queues that the app declares already, by name."""
    if not declared:
        return {}
    if isinstance(declared, dict):
        return {
            name: queue if isinstance(queue, Queue) else Queue.from_dict(name, **queue)
            for name, queue in declared.items()
        }
    queues = [_direct(queue, None) if isinstance(queue, str) else queue for queue in declared]
    return {queue.name: queue for queue in queues}


def lane_queues(app: Any, settings: Settings, given: Any) -> tuple[Queue, ...]:
    """Return the queues of *app*, including those of its lanes.

    Args:
        app: The Celery app; queue arguments depend on its broker.
        settings: The settings, which have the lanes.
        given: The queues that the program declares itself.

    Raises:
        ConfigurationError: A queue that the program declares does not support priorities.
    """
    declared = declared_queues(given)
    ordered = settings.priorities and Broker.of(app) is Broker.RABBITMQ
    arguments = {"x-max-priority": MAX_PRIORITY} if ordered else None
    problems: list[str] = []
    for lane in settings.lanes.values():
        theirs = declared.get(lane.queue)
        # As Celery would declare it, so that a plain Celery producer declares the same.
        declared.setdefault(lane.queue, _direct(lane.queue, arguments))
        if not ordered:
            continue
        problems += _priority_problems(lane.queue, theirs or declared[lane.queue])
        low = low_queue(lane.queue)
        declared.setdefault(low, _direct(low, None))
    ConfigurationError.raise_if(problems)
    return tuple(declared.values())


def _direct(name: str, arguments: dict[str, Any] | None) -> Queue:
    return Queue(name, Exchange(name), routing_key=name, queue_arguments=arguments)


def _priority_problems(name: str, queue: Any) -> Iterator[str]:
    arguments = queue.queue_arguments or {}
    if arguments.get("x-queue-type") == "quorum":
        yield (
            f"queue {name!r}: a quorum queue serves by no such priorities; make it a classic "
            "queue, or set budgets_priorities = False"
        )
    elif arguments.get("x-max-priority") != MAX_PRIORITY:
        yield (
            f"queue {name!r}: budgets_priorities needs queue_arguments="
            f"{{'x-max-priority': {MAX_PRIORITY}}}; it has "
            f"{arguments.get('x-max-priority', 'none')}"
        )


def as_tuple(routes: Any) -> tuple[Any, ...]:
    """Return the routes of ``task_routes``."""
    if routes is None:
        return ()
    return tuple(routes) if isinstance(routes, list | tuple) else (routes,)


def real_names(names: Iterable[str], queues: Any) -> list[str]:
    """Return *names* with each alias replaced by the name of its queue in *queues*."""
    return [queues.aliases[name].name if name in queues.aliases else name for name in names]


def queue_names(queues: Any) -> list[str]:
    """Return the queue names in a ``-Q`` or ``-X`` option."""
    if isinstance(queues, str):
        queues = queues.split(",")
    return [str(queue).strip() for queue in queues or ()]


def lanes_of_queues(lanes: Lanes, queues: Iterable[str]) -> list[Lane]:
    """Return the lanes whose queue is among *queues*, in the order of the table."""
    names = set(queues)
    return [lane for lane in lanes.values() if lane.queue in names]
