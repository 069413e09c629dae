"""The strategy for ``celery.map`` and its variants: handles a message as its mapped task.

Runs in the worker main process. See also: :mod:`celery_budgets.tasks.mapped`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.worker.strategy import default

if TYPE_CHECKING:
    from celery_budgets.tasks.mapped import MappingTask
    from celery_budgets.tasks.task import BudgetedTask

__all__ = ["by_mapped_task"]

logger = logging.getLogger(__name__)

Handler = Callable[..., Any]


def by_mapped_task(task: MappingTask, app: Any, consumer: Any) -> Handler:
    """Return a handler for messages of *task*, which uses Celery's handler of the mapped task.

    Wraps celery.worker.strategy.default, which creates a handler for a single task.
    """
    plain = default(task.plain(), app, consumer)
    handlers: dict[str, Handler] = {}

    def handle(message: Any, body: Any, *args: Any, **kwargs: Any) -> Any:
        mapped = _mapped(task, message, body)
        if mapped is None:
            return plain(message, body, *args, **kwargs)
        handler = handlers.get(mapped.name)
        if handler is None:
            handler = handlers[mapped.name] = default(task.charged_to(mapped), app, consumer)
        return handler(message, body, *args, **kwargs)

    return handle


def _mapped(task: MappingTask, message: Any, body: Any) -> BudgetedTask | None:
    """Return the budgeted task that *message* maps; ``None``: Celery handles it unchanged."""
    try:
        # Message protocol 1 is one dictionary; 2 is (args, kwargs, embed).
        payload = message.payload if body is None else body
        if isinstance(payload, dict):
            return task.mapped_by(payload.get("args"), payload.get("kwargs"))
        return task.mapped_by(*payload[:2])
    except Exception as exc:
        # Producers may send anything: celery.worker.request.Request reports invalid messages.
        logger.debug("budgets.mapped_unknown: %r", exc)
        return None
