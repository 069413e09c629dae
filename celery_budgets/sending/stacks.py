"""Asks all workers where their calls are, and which were killed.

Runs in the process that asks.

See also: :mod:`celery_budgets.worker.remote.stacks`, which answers.
"""

from __future__ import annotations

import logging
from typing import Any

from celery_budgets.config.settings import settings_of
from celery_budgets.errors import ConfigurationError
from celery_budgets.model.kill import CallStack, Kill
from celery_budgets.model.stack import Stack
from celery_budgets.sending.remote_control import Inspection, Replies

__all__ = ["kills", "stacks"]

logger = logging.getLogger(__name__)


def stacks(
    app: Any,
    inspection: Inspection,
    *,
    task_id: str | None = None,
    lane: str | None = None,
    timeout: float = 1.0,
) -> tuple[list[CallStack], Replies]:
    """Return where running calls are, and the answers of the workers.

    Args:
        app: The Celery app.
        inspection: Asks the workers.
        task_id: Id of a call; ``None``: all, or those of the lane.
        lane: Name of a lane.
        timeout: How long workers may take to answer, seconds.

    Raises:
        ConfigurationError: There is no such lane.
        kombu.exceptions.OperationalError: The broker does not answer.
    """
    if lane is not None:
        settings_of(app).lanes[lane]
    arguments = {"task_id": task_id or "", "lane": lane or ""}
    replies = inspection.ask(timeout, arguments=arguments, command="lanes_stack", tells="stacks")
    found = [_call_stack(one) for answer in replies.by_worker.values() for one in answer["stacks"]]
    return found, replies


def kills(app: Any, inspection: Inspection, timeout: float = 1.0) -> tuple[list[Kill], Replies]:
    """Return the kills of the last day, the oldest first, and the answers of the workers.

    Args:
        app: The Celery app.
        inspection: Asks the workers.
        timeout: How long workers may take to answer, seconds.

    Raises:
        kombu.exceptions.OperationalError: The broker does not answer.
    """
    replies = inspection.ask(timeout, command="lanes_kills", tells="kills")
    told = [Kill.from_json(one) for answer in replies.by_worker.values() for one in answer["kills"]]
    # A kill has one instant on one worker: one that both have told is counted once.
    every = {(kill.worker, kill.task_id, kill.at): kill for kill in [*_kept(app), *told]}
    return sorted(every.values(), key=lambda kill: kill.at), replies


def _kept(app: Any) -> list[Kill]:
    """Return the kills in the Redis of the leases; none if there is no such Redis."""
    from celery_budgets.shared_state.kill_store import KillStore

    try:
        store = KillStore(app)
    except ConfigurationError:
        return []
    try:
        return store.lately()
    except Exception as exc:
        logger.warning("budgets.kills_not_read: %s: only what workers remember is shown", exc)
        return []
    finally:
        store.close()


def _call_stack(data: Any) -> CallStack:
    stack = None
    if data["stack"] is not None:
        stack = Stack.from_json(data["stack"], "asked", told=data["label"])
        others = tuple(Stack.from_json(one, "asked").frames for one in data["threads"])
        stack = stack._replace(others=others)
    return CallStack(
        data["task_id"], data["task"], data["lane"], data["worker"], data["seconds"], stack
    )
