"""Checks for anything that would defeat priorities, before a worker takes its first call.

See also: :mod:`celery_budgets.config.queues`, which checks the queues that the program declares.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from celery_budgets.model.lanes import Lane
from celery_budgets.model.priority import MAX_PRIORITY, Broker, Priority, level_of, number_of

__all__ = ["priority_problems"]

logger = logging.getLogger(__name__)

#: AMQP's reply to a declaration that contradicts the existing queue.
_PRECONDITION_FAILED = 406


def priority_problems(app: Any, lanes: Iterable[Lane]) -> Iterator[str]:
    """Yield each obstacle to serving high priority first, with its remedy.

    Args:
        app: The Celery app; connects to its broker.
        lanes: The lanes that the worker serves.
    """
    broker = Broker.of(app)
    if broker is None:
        yield "budgets_priorities: this broker has none; use Redis or RabbitMQ, or set it to False"
        return
    ahead = app.conf.worker_prefetch_multiplier
    if ahead != 1:
        yield (
            f"worker_prefetch_multiplier {ahead} defeats budgets_priorities: calls are fetched "
            "before their turn; set it to 1"
        )
    if broker is Broker.REDIS:
        yield from _step_problems(app)
    else:
        yield from _queue_problems(app, lanes)


def _step_problems(app: Any) -> Iterator[str]:
    steps = (app.conf.broker_transport_options or {}).get("priority_steps")
    if steps is None:
        return
    numbers = [number_of(priority, Broker.REDIS) for priority in Priority]
    # As in kombu.transport.redis.Channel.priority: the highest step that is not above it.
    lists = [max((step for step in steps if step <= number), default=None) for number in numbers]
    if [level_of(step, Broker.REDIS) for step in lists if step is not None] != list(Priority):
        yield (
            f"broker_transport_options['priority_steps'] {list(steps)!r} defeats "
            f"budgets_priorities: it must tell {', '.join(map(str, numbers))} apart; leave it out"
        )


def _queue_problems(app: Any, lanes: Iterable[Lane]) -> Iterator[str]:
    """Declare the queues as the worker will; a broker refuses if they differ."""
    for lane in lanes:
        try:
            with app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, timeout=2)
                app.amqp.queues[lane.queue](connection.default_channel).declare()
        except Exception as exc:
            if getattr(exc, "reply_code", None) != _PRECONDITION_FAILED:
                logger.info("budgets.priorities_unchecked queue=%s: %s", lane.queue, exc)
                return  # Celery goes on trying to connect
            yield (
                f"queue {lane.queue!r} exists at the broker without x-max-priority "
                f"{MAX_PRIORITY}; let it run empty and delete it (rabbitmqctl delete_queue "
                f"{lane.queue}), or give the lane another queue"
            )
