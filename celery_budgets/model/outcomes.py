"""How a call ended: the one table of outcomes.

See also: :mod:`celery_budgets.worker.calls.roster`, which gives every call exactly one of them.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Outcome"]


class Outcome(StrEnum):
    """How a call ended. Its value is the word used in spans, metrics, logs and statistics."""

    SUCCEEDED = "succeeded"  #: the body returned
    FAILED = "failed"  #: the body raised
    RETRIED = "retried"  #: the body asked to be run again
    SOFT_TIME_LIMIT = "soft_time_limit"  #: the exception of the soft limit ended the call
    HARD_TIME_LIMIT = "hard_time_limit"  #: killed at the hard limit
    MEMORY_LIMIT = "memory_limit"  #: ended, by exception or by kill, for memory
    WORKER_LOST = "worker_lost"  #: its process died for any other reason
    REJECTED = "rejected"  #: not admitted, or the body raised ``Reject``
    REVOKED = "revoked"  #: revoked or expired before or while it ran
