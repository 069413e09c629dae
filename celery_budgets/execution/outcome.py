"""Derives the outcome of a call from the exception that its body raised.

Runs in the process that runs the call.
"""

from __future__ import annotations

import sys

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded, TimeLimitExceeded

from celery_budgets.errors import MemoryLimitExceeded, RejectedByBudget, Throttled
from celery_budgets.execution.call import Call, HardLimitReached
from celery_budgets.model.outcomes import Outcome

__all__ = ["TwinFailed", "TwinWaits", "outcome_of", "outcome_of_block"]


class TwinWaits(Ignore):
    """Ends a delivery whose twin runs; a new, delayed message replaces it (idempotency)."""


class TwinFailed(Ignore):
    """Ends a delivery whose twin has failed and has stored the failure as the result of both."""


#: Exceptions of a body that do not mean a failure.
_OUTCOMES: tuple[tuple[type[BaseException], Outcome], ...] = (
    (SoftTimeLimitExceeded, Outcome.SOFT_TIME_LIMIT),
    (TimeLimitExceeded, Outcome.HARD_TIME_LIMIT),
    (MemoryLimitExceeded, Outcome.MEMORY_LIMIT),
    (Retry, Outcome.RETRIED),
    (Reject, Outcome.REJECTED),
    (TwinWaits, Outcome.RETRIED),
    (Throttled, Outcome.RETRIED),
    (TwinFailed, Outcome.FAILED),
    (Ignore, Outcome.SUCCEEDED),
)


def outcome_of(error: BaseException) -> Outcome:
    """Return the outcome of a call whose body ended by *error*."""
    return next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), Outcome.FAILED)


def outcome_of_block(error: BaseException | None, call: Call | None) -> Outcome:
    """Return the outcome of a block that ended with *error*.

    Args:
        error: The exception that the block raised; ``None`` if it completed.
        call: The block's call; ``None`` if it never began.
    """
    if error is None:
        return Outcome.SUCCEEDED
    if call is None and isinstance(error, RejectedByBudget):
        return Outcome.REJECTED
    if isinstance(error, HardLimitReached):
        return Outcome.HARD_TIME_LIMIT
    if isinstance(error, MemoryError):
        return Outcome.MEMORY_LIMIT
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return Outcome.WORKER_LOST
    # If asyncio is not imported, nothing was cancelled; the import would take 10 ms.
    cancelled = getattr(sys.modules.get("asyncio"), "CancelledError", GeneratorExit)
    if isinstance(error, GeneratorExit | cancelled):
        return _by_limit_around(call) or Outcome.REVOKED
    return outcome_of(error)


def _by_limit_around(call: Call | None) -> Outcome | None:
    """Return the limit of an enclosing call that ends *call* as well."""
    outer = call.parent if call is not None else None
    while outer is not None:
        if outer.open and outer.hard_sent:
            return Outcome.HARD_TIME_LIMIT
        if outer.open and outer.soft_sent:
            return Outcome.SOFT_TIME_LIMIT
        outer = outer.parent
    return None
