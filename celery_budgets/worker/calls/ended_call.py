"""The data of an ended call in the worker main process."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from celery_budgets.execution.flight.record import Flight, flight_in
from celery_budgets.model.headers import HEADER_DUE_AT, HEADER_SCOPE, seconds_waited
from celery_budgets.model.outcomes import Outcome
from celery_budgets.sending.scope import scope_in
from celery_budgets.worker.stacks.black_box import end_and_warning

if TYPE_CHECKING:
    from celery_budgets.model.stack import Stack
    from celery_budgets.worker.delivery import Delivery

__all__ = ["EndedCall", "facts_of"]

#: The trace id in a record of a call without a span.
_NO_TRACE = bytes(16)
_OVER_THE_SOFT_LIMIT = frozenset({Outcome.SOFT_TIME_LIMIT, Outcome.HARD_TIME_LIMIT})


class EndedCall(NamedTuple):
    """The data of an ended call that are kept until it is counted.

    Not the delivery itself, which holds the arguments of the call.
    """

    outcome: Outcome
    #: Seconds since the epoch.
    ended_at: float
    started_at: float | None
    #: The soft limit that was in force, seconds.
    soft: float
    lane: str
    task: str
    task_id: str
    worker: str
    #: Headers of its message, which may be invalid.
    due_at: Any
    scope: Any
    #: Its flight record: an unread copy, or unpacked.
    record: Flight | bytes | None
    #: Where its body was when it was killed, and before at its soft limit.
    stacks: tuple[Stack, ...] = ()

    @classmethod
    def of(cls, request: Delivery, outcome: Outcome, record: Flight | bytes | None) -> Self:
        """Return the data of *request*, whose call has just ended."""
        headers = request._request_dict
        return cls(
            outcome, time(), request.time_start, request.limits.soft, request.lane.name,
            request._type, request.id, request._hostname, headers.get(HEADER_DUE_AT),
            headers.get(HEADER_SCOPE), record, request.stacks,
        )  # fmt: skip


def facts_of(ended: EndedCall) -> dict[str, Any]:
    """Return the fields of a call for logs and statistics (telemetry.logs.SCHEMA).

    Time and memory are ``None`` if it never ran or they are unknown.
    """
    flight = flight_in(ended.record, ended.task_id)
    seconds = _seconds(ended, flight)
    if flight is not None and flight.ended:
        exceeded = flight.soft_exceeded
    else:
        exceeded = seconds is not None and seconds > ended.soft
    headers = {HEADER_DUE_AT: ended.due_at, HEADER_SCOPE: ended.scope}
    last, told = end_and_warning(ended.stacks) if ended.stacks else (None, None)
    facts = {
        "outcome": ended.outcome.value,
        "lane": ended.lane,
        "task": ended.task,
        "task_id": ended.task_id,
        "worker": ended.worker,
        "scope": scope_in(headers),
        "seconds": seconds,
        "wait_seconds": seconds_waited(headers, ended.started_at or ended.ended_at),
        "soft_limit_exceeded": exceeded or ended.outcome in _OVER_THE_SOFT_LIMIT,
        "rss_before_bytes": None,
        "rss_peak_bytes": None,
        "trace_id": None,
        "twin": False,
        "stack": last.to_json() if last is not None else None,
        "soft_stack": told.to_json() if told is not None else None,
    }
    if flight is not None:
        facts |= {
            "rss_before_bytes": flight.rss_before_bytes,
            "rss_peak_bytes": flight.rss_peak_bytes,
            "trace_id": flight.trace_id.hex() if flight.trace_id != _NO_TRACE else None,
            "twin": flight.twin,
        }
    return facts


def _seconds(ended: EndedCall, flight: Flight | None) -> float | None:
    if flight is not None and flight.ended:
        return flight.wall_seconds
    if ended.started_at is None:
        return None
    started = flight.started_at if flight is not None else ended.started_at
    return max(0.0, ended.ended_at - started)
