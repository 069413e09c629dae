"""Every name under which something is said about a call, with its unit: the one table.

Own attributes stand under ``celery_budgets.``; units follow UCUM (``s``, ``By``) and are part
of no name. See also: the README's table, which a test holds against this one.
"""

from __future__ import annotations

from typing import Final

__all__ = ["HEADER_LIMITS", "HEADER_SENT_AT"]

# Message headers.
#: Seconds since the epoch at which the message was published.
HEADER_SENT_AT: Final = "budgets_sent_at"
#: Calls of this task that ended by a kill before, counted over its re-runs.
HEADER_KILLS: Final = "budgets_kills"
#: Put on a request by the worker: (lane, soft limit, hard limit), seconds. Never sent.
HEADER_LIMITS: Final = "budgets_limits"

# Span attributes.
TASK_ID: Final = "celery_budgets.task.id"
TASK_NAME: Final = "celery_budgets.task.name"
LANE: Final = "celery_budgets.lane"
QUEUE: Final = "celery_budgets.queue"
WORKER: Final = "celery_budgets.worker"
ATTEMPT: Final = "celery_budgets.attempt"
OUTCOME: Final = "celery_budgets.outcome"
DURATION: Final = "celery_budgets.duration"  # s
SOFT_LIMIT: Final = "celery_budgets.time_limit.soft"  # s
HARD_LIMIT: Final = "celery_budgets.time_limit.hard"  # s
SOFT_EXCEEDED: Final = "celery_budgets.soft_limit_exceeded"
RSS_BEFORE: Final = "celery_budgets.rss.before"  # By
RSS_AFTER: Final = "celery_budgets.rss.after"  # By
RSS_DELTA: Final = "celery_budgets.rss.delta"  # By
RSS_PEAK: Final = "celery_budgets.rss.peak"  # By
RSS_ATTRIBUTED: Final = "celery_budgets.rss.attributed"

# Taken over from the resource, so that a span says them where resources are dropped.
RESOURCE_ATTRIBUTES: Final = ("service.name", "service.version", "deployment.environment.name")

# Span events.
EVENT_STARTED: Final = "execution_started"
EVENT_SUCCEEDED: Final = "execution_succeeded"
EVENT_FAILED: Final = "execution_failed"
EVENT_SOFT_LIMIT: Final = "soft_time_limit"
EVENT_MEMORY_WARNING: Final = "memory_warning"
