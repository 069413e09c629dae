"""``Outcome``: how a call ended.

See also: :mod:`celery_budgets.worker.calls.roster`, which gives every call exactly one of them.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Outcome"]


class Outcome(StrEnum):
    """How a call ended. Its value is the word used in spans, metrics, logs and statistics."""

    SUCCEEDED = "succeeded"  #: the body returned
    FAILED = "failed"  #: the body raised
    RETRIED = "retried"  #: the body called ``retry``
    SOFT_TIME_LIMIT = "soft_time_limit"  #: ``SoftTimeLimitExceeded`` ended the call
    HARD_TIME_LIMIT = "hard_time_limit"  #: killed at the hard limit
    MEMORY_LIMIT = "memory_limit"  #: ended, by exception or by kill, at a memory limit
    WORKER_LOST = "worker_lost"  #: its process died for any other reason
    REJECTED = "rejected"  #: not admitted, or the body raised ``Reject``
    REVOKED = "revoked"  #: revoked or expired before or while it ran
