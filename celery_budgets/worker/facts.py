"""The facts of a call that has ended, as the worker main process knows them."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any

from celery_budgets.outcomes import Outcome
from celery_budgets.scope import scope_in
from celery_budgets.telemetry.names import seconds_waited

if TYPE_CHECKING:
    from celery_budgets.process.recorder import Flight
    from celery_budgets.worker.request import BudgetedRequest

__all__ = ["facts_of"]

#: What a record has where the call had no span.
_NO_TRACE = bytes(16)
_OVER_THE_SOFT_LIMIT = frozenset({Outcome.SOFT_TIME_LIMIT, Outcome.HARD_TIME_LIMIT})


def facts_of(request: BudgetedRequest, outcome: Outcome, flight: Flight | None) -> dict[str, Any]:
    """Return what is logged and counted of a call (telemetry.logs.SCHEMA).

    Time and memory are ``None`` where it never ran or nobody could tell.

    Args:
        request: The delivery.
        outcome: How it ended.
        flight: The record of its process, where there is one.
    """
    headers, started = request.request_dict, request.time_start
    seconds = _seconds(started, flight)
    if flight is not None and flight.ended:
        exceeded = flight.soft_exceeded
    else:
        exceeded = seconds is not None and seconds > request.limits.soft
    facts = {
        "outcome": outcome.value,
        "lane": request.lane.name,
        "task": request.type,
        "task_id": request.id,
        "worker": request.hostname,
        "scope": scope_in(headers),
        "seconds": seconds,
        "wait_seconds": seconds_waited(headers, started or time()),
        "soft_limit_exceeded": exceeded or outcome in _OVER_THE_SOFT_LIMIT,
        "rss_before_bytes": None,
        "rss_peak_bytes": None,
        "trace_id": None,
        "twin": False,
    }
    if flight is not None:
        facts |= {
            "rss_before_bytes": flight.rss_before_bytes,
            "rss_peak_bytes": flight.rss_peak_bytes,
            "trace_id": flight.trace_id.hex() if flight.trace_id != _NO_TRACE else None,
            "twin": flight.twin,
        }
    return facts


def _seconds(started: float | None, flight: Flight | None) -> float | None:
    if flight is not None and flight.ended:
        return flight.wall_seconds
    if started is None:
        return None
    return max(0.0, time() - (flight.started_at if flight is not None else started))
