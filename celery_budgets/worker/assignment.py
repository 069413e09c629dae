"""Assigns the calls of a task to a lane, by their queue, and determines their budget there.

Runs in the worker main process.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple, Self

from celery_budgets.config.broker_limits import broker_ceiling
from celery_budgets.config.routing import lane_of
from celery_budgets.config.settings import settings_of
from celery_budgets.errors import ConfigurationError
from celery_budgets.model.budget import Budget, TimeLimits, limits_in_message, seconds_or_none
from celery_budgets.model.lanes import Lane
from celery_budgets.worker.runtime import WorkerRuntime, runtime_of

__all__ = ["Assignment"]

logger = logging.getLogger(__name__)

#: ``time_limit`` and ``timelimit`` where neither task nor message sets Celery's time limits.
_NONE_ASKED_FOR = (None, [None, None])


class Assignment(NamedTuple):
    """The lane and the limits of all calls of one task that come from one queue."""

    runtime: WorkerRuntime
    lane: Lane
    budget: Budget
    #: Limits of calls that request none themselves.
    limits: TimeLimits
    #: Highest soft limit that a call may request, seconds; ``None``: unlimited.
    ceiling: float | None

    @classmethod
    def of(cls, app: Any, task: Any, name: str, queue: str) -> Self:
        """Return the assignment of calls from *queue* whose messages name *task* as *name*."""
        lane = lane_of(settings_of(app).lanes, name, task, queue)
        try:
            budget: Budget = task.budget_in(lane)
        except ConfigurationError as exc:
            # The worker's start checks the task's own lane; this is another lane's queue.
            logger.warning("budgets.lane_budget_used task=%s: %s", name, exc)
            budget = lane.budget
        ceiling = budget.max_timeout or broker_ceiling(app, budget.escalation_factor)
        return cls(runtime_of(app), lane, budget, budget.time_limits(), ceiling)

    def limits_of(self, task: Any, header: Any) -> TimeLimits:
        """Return the limits of one call, up to the ceiling.

        Args:
            task: The task; limits of the message take precedence over its ``time_limit``.
            header: The message's ``timelimit``: (hard, soft), or an invalid value.
        """
        soft, hard = task.soft_time_limit, task.time_limit
        if soft is hard is None and header in _NONE_ASKED_FOR:
            return self.limits
        asked_hard, asked_soft = limits_in_message(header)
        soft = asked_soft or seconds_or_none(soft)
        hard = asked_hard or seconds_or_none(hard)
        return self.budget.time_limits(soft=soft, hard=hard, ceiling=self.ceiling)
