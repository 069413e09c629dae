"""Ends spans of calls that cannot end their own: killed, lost, revoked, rejected.

Runs in the worker main process. If the call had begun, the span gets the span id that its process
used, so that the spans made inside the call keep their parent.

Needs the tracer provider in the worker main process too: set it where the app is created, not
only in ``worker_process_init``. See also: :mod:`celery_budgets.telemetry.spans`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from time import time
from typing import TYPE_CHECKING, Any

from celery_budgets.model.headers import seconds_waited
from celery_budgets.telemetry import attributes as names
from celery_budgets.telemetry import spans

if TYPE_CHECKING:
    from celery_budgets.execution.flight.record import Flight
    from celery_budgets.model.outcomes import Outcome

__all__ = ["end_for_process"]

logger = logging.getLogger(__name__)

_INSTRUMENTATION = "opentelemetry.instrumentation.celery"


def end_for_process(
    name: str,
    attributes: Mapping[str, Any],
    headers: Mapping[str, Any],
    outcome: Outcome,
    reason: str,
    flight: Flight | None,
    stacks: Mapping[str, str],
) -> bool:
    """Emit the span of one call; return whether a provider took it.

    Args:
        name: Name of the span.
        attributes: Attributes of the call.
        headers: The headers of its message, which name the parent span.
        outcome: How the call ended.
        reason: Why, as text; the description of the status ERROR.
        flight: The flight record of its process; ``None`` if the call never began.
        stacks: By event, where the call was, as in a traceback.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return False
    provider = trace.get_tracer_provider()
    processor = getattr(provider, "_active_span_processor", None)
    if processor is None:
        return False  # not a provider of the SDK: its spans cannot be given an id
    parent = _parent(trace, headers)
    context = _context(trace, provider, parent, flight, name)
    if context is None:
        return False
    known = dict(attributes)
    if flight is not None:
        known[names.WAIT] = seconds_waited(headers, flight.started_at)
    told = _readable(name, known, outcome, reason, flight, stacks, provider, parent, context)
    processor.on_end(told)
    return True


def _parent(trace: Any, headers: Mapping[str, Any]) -> Any:
    from opentelemetry.propagate import extract

    carrier = {key: value for key, value in headers.items() if isinstance(value, str)}
    found = trace.get_current_span(extract(carrier)).get_span_context()
    return found if found.is_valid else None


def _context(trace: Any, provider: Any, parent: Any, flight: Flight | None, name: str) -> Any:
    """Return the span context, or ``None`` if the span is not sampled."""
    if parent is not None and not parent.trace_flags.sampled:
        return None
    if flight is not None and any(flight.span_id):
        trace_id = int.from_bytes(flight.trace_id, "big")
        span_id = int.from_bytes(flight.span_id, "big")
    else:
        if flight is not None and _was_sampled_out(provider):
            return None
        trace_id = parent.trace_id if parent else provider.id_generator.generate_trace_id()
        span_id = provider.id_generator.generate_span_id()
        if flight is None and not _is_sampled(trace, provider, parent, trace_id, name):
            return None
    return trace.SpanContext(
        trace_id, span_id, is_remote=False, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED)
    )


def _is_sampled(trace: Any, provider: Any, parent: Any, trace_id: int, name: str) -> bool:
    """Return the decision of the sampler, called as by a tracer, for a call that never began."""
    around = trace.set_span_in_context(trace.NonRecordingSpan(parent)) if parent else None
    result = provider.sampler.should_sample(around, trace_id, name, trace.SpanKind.CONSUMER)
    return bool(result.decision.is_sampled())


def _was_sampled_out(provider: Any) -> bool:
    """Return whether a call that began without a recorded span was dropped by sampling."""
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON, DEFAULT_ON

    return provider.sampler not in (ALWAYS_ON, DEFAULT_ON)


def _readable(
    name: str,
    attributes: Mapping[str, Any],
    outcome: Outcome,
    reason: str,
    flight: Flight | None,
    stacks: Mapping[str, str],
    provider: Any,
    parent: Any,
    context: Any,
) -> Any:
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanKind, Status, StatusCode

    ended = time()
    started = flight.started_at if flight is not None else ended
    facts = {
        **spans.shared_attributes(provider.resource),
        **attributes,
        names.OUTCOME: outcome.value,
        names.ERROR_TYPE: outcome.value,
        names.DURATION: ended - started,
    }
    if flight is not None:
        facts[names.RSS_BEFORE] = flight.rss_before_bytes
        facts[names.RSS_PEAK] = flight.rss_peak_bytes
        over = ended - started > attributes.get(names.SOFT_LIMIT, float("inf"))
        facts[names.SOFT_EXCEEDED] = flight.soft_exceeded or over
    instants = {names.EVENT_STARTED: started}
    return ReadableSpan(
        name=name,
        context=context,
        parent=parent,
        resource=provider.resource,
        attributes=facts,
        events=[
            Event(event, _trace_in(stacks, event), _ns(instants.get(event, ended)))
            for event in _happened(facts, outcome, began=flight is not None)
        ],
        kind=SpanKind.CONSUMER,
        status=Status(StatusCode.ERROR, reason),
        start_time=_ns(started),
        end_time=_ns(ended),
        instrumentation_scope=InstrumentationScope(_INSTRUMENTATION),
    )


def _happened(facts: Mapping[str, Any], outcome: Outcome, *, began: bool) -> list[str]:
    happened = [names.EVENT_STARTED] if began else []
    if facts.get(names.SOFT_EXCEEDED):
        happened.append(names.EVENT_SOFT_LIMIT)
    if outcome.value == "hard_time_limit":
        happened.append(names.EVENT_HARD_LIMIT)
    return [*happened, names.EVENT_FAILED, names.EVENT_COMPLETED]


def _trace_in(stacks: Mapping[str, str], event: str) -> dict[str, str] | None:
    return {names.STACKTRACE: stacks[event]} if event in stacks else None


def _ns(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
