"""What one call consumed, as the worker main process knows it when the call has ended."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, NamedTuple, Self

from celery_budgets.outcomes import Outcome
from celery_budgets.telemetry.names import seconds_waited

if TYPE_CHECKING:
    from celery_budgets.process.recorder import Flight
    from celery_budgets.worker.request import BudgetedRequest

__all__ = ["Usage"]

#: What a record has where the call had no span.
_NO_TRACE = bytes(16)
_OVER_THE_SOFT_LIMIT = frozenset({Outcome.SOFT_TIME_LIMIT, Outcome.HARD_TIME_LIMIT})


class Usage(NamedTuple):
    """Time and memory of one call; ``None`` where it never ran or nobody could tell."""

    seconds: float | None
    wait_seconds: float
    soft_limit_exceeded: bool
    rss_before_bytes: int | None
    rss_peak_bytes: int | None
    #: Hexadecimal, as traces are looked up by; ``None`` without a recorded span.
    trace_id: str | None
    #: The body did not run: a twin with the same idempotency key runs, or has run.
    twin: bool = False

    @classmethod
    def of(cls, request: BudgetedRequest, outcome: Outcome, flight: Flight | None) -> Self:
        """Return what *request* has consumed, by the record of its process where there is one."""
        seconds = _seconds(request, flight)
        exceeded = seconds is not None and seconds > request.limits.soft
        if flight is not None and flight.ended:
            exceeded = flight.soft_exceeded
        started = request.time_start or time()
        return cls(
            seconds,
            seconds_waited(request.request_dict, started),
            exceeded or outcome in _OVER_THE_SOFT_LIMIT,
            flight.rss_before_bytes if flight is not None else None,
            flight.rss_peak_bytes if flight is not None else None,
            flight.trace_id.hex() if flight is not None and flight.trace_id != _NO_TRACE else None,
            flight is not None and flight.twin,
        )


def _seconds(request: BudgetedRequest, flight: Flight | None) -> float | None:
    if flight is not None and flight.ended:
        return flight.wall_seconds
    if request.time_start is None:
        return None
    return max(0.0, time() - (flight.started_at if flight is not None else request.time_start))
