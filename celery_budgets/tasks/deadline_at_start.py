"""Applies an inherited deadline at the start of a call, in the process that runs it.

See also: :mod:`celery_budgets.worker.calls.inherited_deadline`, which checks it first.
"""

from __future__ import annotations

from typing import Any

from celery_budgets.errors import RejectedByBudget
from celery_budgets.execution.call import Terms
from celery_budgets.model.budget import TimeLimits
from celery_budgets.model.deadline import Deadline
from celery_budgets.model.headers import HEADER_DEADLINE
from celery_budgets.model.reasons import REASON_DEADLINE

__all__ = ["terms_at_start"]


def terms_at_start(terms: Terms, request: Any) -> Terms:
    """Return *terms* adjusted to the time that is left, since the call may have waited.

    Args:
        terms: The terms that the worker sent along.
        request: The request of the task, which has the headers of its message.

    Raises:
        RejectedByBudget: The deadline has passed; the call must not start.
    """
    deadline = Deadline.of(vars(request).get(HEADER_DEADLINE))
    if deadline is None:
        return terms
    if deadline.passed:
        raise RejectedByBudget(REASON_DEADLINE, terms.lane)
    left = deadline.left()
    soft, hard = deadline.clamp(TimeLimits(terms.soft, terms.hard))
    ceiling = left.soft if terms.ceiling is None else min(terms.ceiling, left.soft)
    return terms._replace(soft=soft, hard=hard, ceiling=ceiling, hard_ceiling=left.hard)
