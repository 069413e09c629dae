"""Enforces inherited deadlines in the worker main process, before a call starts.

Checked when a call is passed to the pool, not when it arrives: it may have waited in this
worker. See also: :mod:`celery_budgets.tasks.deadline_at_start`, which checks again at its start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_budgets.errors import RejectedByBudget
from celery_budgets.model.deadline import Deadline
from celery_budgets.model.headers import HEADER_DEADLINE
from celery_budgets.model.reasons import REASON_DEADLINE
from celery_budgets.worker.calls.malformed_headers import tell_of_malformed

if TYPE_CHECKING:
    from celery_budgets.execution.flight.record import Flight
    from celery_budgets.worker.delivery import Delivery

__all__ = ["came_too_late", "in_time"]

#: Largest difference between the clocks of two processes, seconds.
_CLOCKS_APART = 0.01


def in_time(request: Delivery) -> bool:
    """Shorten the limits of *request* to the time left; fail it and return False if none is."""
    header = request.request_dict.get(HEADER_DEADLINE)
    if header is None:
        return True
    deadline = Deadline.of(header)
    if deadline is None:
        tell_of_malformed(
            request, HEADER_DEADLINE, header,
            "is no pair of seconds since the epoch; send headers=budgets.deadline(seconds)",
        )  # fmt: skip
        return True
    if deadline.passed:
        request.roster.rejected(request, REASON_DEADLINE)
        request.end_rejected(RejectedByBudget(REASON_DEADLINE, request.lane.name))
        return False
    limits = deadline.clamp(request.limits)
    request.limits, request.time_limits = limits, (limits.hard, limits.soft)
    return True


def came_too_late(request: Delivery, exc: BaseException, flight: Flight | None) -> bool:
    """Return whether *exc* means that the process did not start the call.

    A body may raise the same error from a call that it has waited for. Then the body had begun, and
    its flight record is newer than that of an earlier attempt.
    """
    if not isinstance(exc, RejectedByBudget) or exc.reason != REASON_DEADLINE:
        return False
    return flight is None or flight.started_at < (request.time_start or 0.0) - _CLOCKS_APART
