"""Ends the span of a call whose own process died before it could.

See also: :mod:`celery_budgets.telemetry.killed_spans`, which creates the span.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery_budgets.config.settings import settings_of
from celery_budgets.execution.call import Terms
from celery_budgets.execution.flight.record import flight_in
from celery_budgets.model.outcomes import Outcome
from celery_budgets.telemetry.attributes import EVENT_FAILED, EVENT_SOFT_LIMIT, WORKER
from celery_budgets.telemetry.killed_spans import end_for_process
from celery_budgets.telemetry.spans import call_attributes
from celery_budgets.worker.stacks.black_box import end_and_warning

if TYPE_CHECKING:
    from celery_budgets.worker.calls.roster import CallEnd
    from celery_budgets.worker.delivery import Delivery

__all__ = ["KilledSpan"]

logger = logging.getLogger(__name__)

#: Outcomes that the process of a call may not have reported itself.
_ENDED_HERE = frozenset(
    {
        Outcome.HARD_TIME_LIMIT, Outcome.MEMORY_LIMIT, Outcome.WORKER_LOST, Outcome.REVOKED,
        Outcome.REJECTED,
    }
)  # fmt: skip


class KilledSpan:
    """Ends spans of killed calls.

    Args:
        terms: Returns the terms of a call.
        lost: Called for each span that could not be emitted.
    """

    def __init__(
        self, terms: Callable[[Delivery], tuple[Any, ...]], lost: Callable[[], object]
    ) -> None:
        self._terms = terms
        self._lost = lost

    def end(self, end: CallEnd) -> None:
        """End the span of a call, if its process may not have done so and has finished with it."""
        if end.outcome not in _ENDED_HERE or end.runs_on:
            return
        request, flight = end.request, flight_in(end.record, end.request.id)
        if flight is not None and flight.ended:
            return
        settings = settings_of(request.app)
        if not settings.tracing:
            return
        headers, terms = request.request_dict, Terms(*self._terms(request))
        name = settings.span_name or f"run/{request.type}"
        told = end_for_process(
            name.format(lane=request.lane.name, task=request.type),
            {
                **call_attributes(request.app, request.type, headers, terms),
                WORKER: request.hostname,
            },
            headers, end.outcome, end.reason or end.outcome.value, flight,
            _stacks_of(request),
        )  # fmt: skip
        if not told and flight is not None and any(flight.span_id):
            self._lost()
            logger.warning(
                "budgets.span_lost task_id=%s outcome=%s: set the tracer provider in the "
                "worker main process too", request.id, end.outcome.value,
            )  # fmt: skip


def _stacks_of(request: Delivery) -> dict[str, str]:
    """Return, by event, where the call was, as in a traceback."""
    last, told = end_and_warning(request.stacks)
    found = ((EVENT_FAILED, last), (EVENT_SOFT_LIMIT, told))
    return {event: "\n".join(stack.lines()) for event, stack in found if stack is not None}
