"""Ends a running call before its limits: others may run in its place already.

Runs in the worker's event loop. See also: :mod:`celery_budgets.worker.limits.fleet_leases`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_budgets.execution.call import SECONDS_TO_STOP
from celery_budgets.execution.limits.watchdog import watchdog
from celery_budgets.worker.pool.jobs import job_of

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery
    from celery_budgets.worker.pool.time_limits import TimeLimitTimer

__all__ = ["end_soon"]


def end_soon(request: Delivery, timer: TimeLimitTimer | None) -> None:
    """Have the call of *request* reach its soft limit now, and its hard one soon after.

    Args:
        request: The delivery.
        timer: Enforces limits in pool processes; ``None`` if calls run in this process.
    """
    job = job_of(request)
    if timer is None:
        watchdog().end_soon(request.id, SECONDS_TO_STOP)
    elif job is not None:
        timer.end_soon(job, SECONDS_TO_STOP)
