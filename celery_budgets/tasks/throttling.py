"""Handles ``Throttled``, which a body has raised: closes the limit, and sends the call again.

In this order, and both before the delivery is acknowledged: nobody takes what is sent again before
the limit is closed, and a crash loses nothing.

Runs in the process that runs the call.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from celery_budgets.config.settings import settings_of
from celery_budgets.errors import ConfigurationError, Throttled, nearest
from celery_budgets.execution.sent_again import send_again
from celery_budgets.model.demands import CallLimits
from celery_budgets.shared_state.limits_of_app import store_of

if TYPE_CHECKING:
    from celery_budgets.model.limit import Demand, Limit
    from celery_budgets.tasks.protocol import Budgeted

__all__ = ["go_back"]

logger = logging.getLogger(__name__)


def go_back(task: Budgeted, request: Any, throttled: Throttled) -> Exception:
    """Close the limit, send the call again, and return what ends this delivery of it.

    A call that would not be held to what is closed comes back when that opens.
    """
    limits = settings_of(task.app).limits
    limit = limits.get(throttled.limit)
    if limit is None:
        return ConfigurationError(
            f"task {task.name!r}: Throttled({throttled.limit!r}): there is no such limit; "
            f"{nearest(throttled.limit, limits)}"
        )
    demand = next((d for d in _demands(task, request) if d.limit is limit), None)
    closed = throttled.closed or _close(task, request, limit, demand, throttled)
    seconds = None if closed and demand is not None else throttled.retry_after
    return send_again(task, seconds, {}) or throttled


def _demands(task: Any, request: Any) -> tuple[Demand, ...]:
    """Return what the worker holds the call to (worker.limits.fleet_leases)."""
    mapped_by = getattr(task, "mapped_by", None)
    of_limits = task if mapped_by is None else mapped_by(request.args, request.kwargs)
    if of_limits is None:
        return ()
    limits = CallLimits(of_limits, settings_of(task.app).limits, reads=mapped_by is None)
    return limits.demands(request.args, request.kwargs, vars(request))


def _close(
    task: Budgeted, request: Any, limit: Limit, demand: Demand | None, throttled: Throttled
) -> bool:
    """Close the limit, or the key of the call; return whether that is known to have worked."""
    if demand is None and limit.key is not None and not throttled.all_keys:
        logger.warning(
            "budgets.throttle_failed limit=%s task=%s: the task does not name this limit, so its "
            "calls have no key to close; add it to limits=, or raise Throttled(all_keys=True)",
            limit.name, task.name,
        )  # fmt: skip
        return False
    key = demand.key if demand is not None else ""
    try:
        store_of(task.app).throttle(
            limit.name, None if throttled.all_keys else key, throttled.retry_after
        )
    except (RedisError, ConfigurationError) as exc:
        logger.warning(
            "budgets.throttle_failed limit=%s task=%s: it stays open: %s",
            limit.name,
            task.name,
            exc,
        )
        return False
    logger.info(
        "budgets.throttled limit=%s key=%s task=%s task_id=%s seconds=%s",
        limit.name, "all" if throttled.all_keys else repr(key), task.name, request.id,
        throttled.retry_after,
    )  # fmt: skip
    return True
