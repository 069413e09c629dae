"""Finds queues to which messages may be sent and that no worker of a lane consumes.

Covers: the default queue that ``Budgets(app)`` has replaced, which may hold messages sent before,
or by a program without this package; undeclared queues of routes and of beat.

Runs in the worker main process, and in ``celery lanes check``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from celery_budgets.config.queues import as_tuple
from celery_budgets.config.settings import settings_of

__all__ = ["abandoned_problems", "tell_of_abandoned", "undeclared_problems"]

logger = logging.getLogger(__name__)

#: Celery's default queue.
_CELERY = "celery"


def undeclared_problems(app: Any) -> Iterator[str]:
    """Yield a problem for each queue of a route or of beat that the app does not declare.

    Sending to it raises ``QueueNotFound``, unless ``task_create_missing_queues`` is on.
    """
    if app.conf.task_create_missing_queues:
        return
    queues = app.amqp.queues
    for whose, queue in (*_of_routes(app.conf.task_routes), *_of_beat(app.conf.beat_schedule)):
        name = str(getattr(queue, "name", queue))
        if name not in queues and name not in queues.aliases:
            yield (
                f"{whose}: queue {name!r} is not declared, so sending to it fails; add it to "
                "task_queues, name a lane's queue, or set task_create_missing_queues = True"
            )


def _of_routes(routes: Any) -> Iterator[tuple[str, Any]]:
    for route in as_tuple(routes):
        pairs: Iterable[Any] = route.items() if isinstance(route, Mapping) else ()
        if isinstance(route, list | tuple):
            pairs = route
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                continue
            pattern, target = pair
            queue = target.get("queue") if isinstance(target, Mapping) else target
            if isinstance(queue, str) or hasattr(queue, "name"):
                yield f"task_routes[{getattr(pattern, 'pattern', pattern)!r}]", queue


def _of_beat(schedule: Any) -> Iterator[tuple[str, Any]]:
    entries = schedule.items() if isinstance(schedule, Mapping) else ()
    for name, entry in entries:
        options = entry.get("options") if isinstance(entry, Mapping) else None
        queue = options.get("queue") if isinstance(options, Mapping) else None
        if queue:
            yield f"beat_schedule[{name!r}]", queue


def abandoned_problems(app: Any, consumed: Iterable[str]) -> Iterator[str]:
    """Yield a problem for each default queue without a lane that holds messages.

    Args:
        app: The Celery app; connects to its broker, on a new connection.
        consumed: Queues that are consumed nevertheless.

    Raises:
        Exception: The broker does not answer; the type depends on its transport.
    """
    served = {lane.queue for lane in settings_of(app).lanes.values()} | set(consumed)
    for name in sorted({_CELERY, app.conf.task_default_queue} - served):
        waiting = _waiting(app, name)
        if waiting:
            yield (
                f"queue {name!r} holds {waiting} messages, and no lane has it: they were sent "
                "before the app had lanes, or by a program without celery-budgets; leave a worker "
                f"of the old kind on it until it is empty, or declare it in task_queues and add "
                f"it to -Q"
            )


def _waiting(app: Any, name: str) -> int:
    with app.connection_for_read() as connection:
        try:
            return int(connection.default_channel.queue_declare(name, passive=True).message_count)
        except connection.channel_errors:
            return 0  # there is no such queue


def tell_of_abandoned(app: Any) -> None:
    """Log the results of :func:`abandoned_problems`, without failing or delaying the worker."""
    consumed = set(app.amqp.queues.consume_from)

    def ask() -> None:
        try:
            for problem in abandoned_problems(app, consumed):
                logger.warning("budgets.queue_abandoned: %s", problem)
        except Exception as exc:
            logger.debug("budgets.queue_abandoned: the broker does not say: %s", exc)

    threading.Thread(target=ask, name="celery-budgets-queues", daemon=True).start()
