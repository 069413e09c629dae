"""The names of all span attributes and span events, with their units.

Our own attributes have the prefix ``celery_budgets.``; units follow UCUM (``s``, ``By``) and are
not part of names. See also: ``docs/reference/spans.md``, whose tables are generated from this one.
"""

from __future__ import annotations

from typing import Final

# Span attributes.
TASK_ID: Final = "celery_budgets.task.id"
TASK_NAME: Final = "celery_budgets.task.name"
LANE: Final = "celery_budgets.lane"
QUEUE: Final = "celery_budgets.queue"
WORKER: Final = "celery_budgets.worker"
ATTEMPT: Final = "celery_budgets.attempt"
IDEMPOTENCY_KEY: Final = "celery_budgets.idempotency_key"
TWIN: Final = "celery_budgets.twin"
SCOPE: Final = "celery_budgets.scope"
INPUT_SIZE: Final = "celery_budgets.input_size"  # By
WAIT: Final = "celery_budgets.queue_wait"  # s
LANE_ACTIVE: Final = "celery_budgets.lane.active"
LANE_LIMIT: Final = "celery_budgets.lane.limit"
GLOBAL_ACTIVE: Final = "celery_budgets.global.active"
GLOBAL_LIMIT: Final = "celery_budgets.global.limit"
LIMITS: Final = "celery_budgets.limits"
LIMIT_WAIT: Final = "celery_budgets.limit.wait"  # s
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

# Copied from the resource, for backends that drop resources.
RESOURCE_ATTRIBUTES: Final = ("service.name", "service.version", "deployment.environment.name")

# Defined by OpenTelemetry (semantic conventions 1.44, messaging).
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
ERROR_TYPE: Final = "error.type"
STACKTRACE: Final = "code.stacktrace"  # of the events that end a killed call

# Span events.
EVENT_SLOT: Final = "acquired_slot"
EVENT_STARTED: Final = "execution_started"
EVENT_SUCCEEDED: Final = "execution_succeeded"
EVENT_FAILED: Final = "execution_failed"
EVENT_SOFT_LIMIT: Final = "soft_time_limit"
EVENT_HARD_LIMIT: Final = "hard_time_limit"
EVENT_MEMORY_WARNING: Final = "memory_warning"
EVENT_COMPLETED: Final = "call_completed"
