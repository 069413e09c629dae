"""Enriches the spans of calls that opentelemetry-instrumentation-celery creates.

If the program has set no tracer provider and no ``OTEL_*`` variable requests one, this module
imports nothing of OpenTelemetry, and a call costs one attribute look-up.

Covers: starting the instrumentation, naming and describing the span of a call, flushing.
Does not cover: providers of the program, which are never changed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from celery_budgets.execution.process_exit import BEFORE_EXIT
from celery_budgets.model.failures import CountingExporter
from celery_budgets.model.headers import HEADER_IDEMPOTENCY_KEY, HEADER_SCOPE
from celery_budgets.model.priority import Broker, addresses
from celery_budgets.telemetry import attributes as names
from celery_budgets.telemetry import exporters

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from celery_budgets.execution.call import Call, Terms
    from celery_budgets.model.outcomes import Outcome

__all__ = [
    "begin", "call_attributes", "end", "flush", "instrument", "leave_open", "shared_attributes",
    "span_ids", "span_of",
]  # fmt: skip

logger = logging.getLogger(__name__)

#: Attribute of a task where the instrumentation keeps spans, by (task id, is publishing span).
_SPANS_OF_TASK = "__otel_task_span"
#: How long spans are batched before export, if this package creates the provider.
BATCH_MILLISECONDS = 200


def instrument(sample_rate: float = 1.0) -> bool:
    """Start the instrumentation if a provider is set or requested; return whether it runs.

    Args:
        sample_rate: Share of traces recorded, 0 to 1, if this package creates the provider
            and ``OTEL_TRACES_SAMPLER`` is not set.
    """
    if not _provider_is_set() and not (
        exporters.asked_for("TRACES") and _make_provider(sample_rate)
    ):
        return False
    from opentelemetry.instrumentation.celery import CeleryInstrumentor

    instrumentor = CeleryInstrumentor()
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument()
    return True


def _provider_is_set() -> bool:
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return False
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _make_provider(sample_rate: float) -> bool:
    """Create a provider from the ``OTEL_*`` variables; return whether it has an exporter."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    found = list(exporters.exporters_for("TRACES"))
    if not found:
        return False
    provider = TracerProvider(sampler=exporters.sampler(sample_rate))
    # A killed pool process loses the spans that it has not exported.
    delay = None if "OTEL_BSP_SCHEDULE_DELAY" in os.environ else BATCH_MILLISECONDS
    for each in found:
        exporter: Any = CountingExporter(each)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=delay))
    trace.set_tracer_provider(provider)
    return True


def span_of(task: Any, task_id: str) -> Span | None:
    """Return the open span of the running call, or ``None`` if none is recorded."""
    spans = vars(task).get(_SPANS_OF_TASK)
    if not spans:
        return None
    entry = spans.get((task_id, False))
    return entry[0] if entry is not None and entry[0].is_recording() else None


def span_ids(span: Span | None) -> tuple[bytes, bytes]:
    """Return the trace id (16 bytes) and span id (8 bytes) of *span*; empty without one."""
    if span is None:
        return b"", b""
    context = span.get_span_context()
    return context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big")


def begin(span: Span, call: Call, task: Any, request: Any, terms: Terms, name: str | None) -> None:
    """Name *span* and set the attributes of the call and its limits."""
    if name is not None:
        span.update_name(name.format(lane=call.lane, task=task.name))
    slot = {
        names.LANE_ACTIVE: terms.lane_active, names.LANE_LIMIT: terms.lane_limit,
        names.GLOBAL_ACTIVE: terms.global_active, names.GLOBAL_LIMIT: terms.global_limit,
    }  # fmt: skip
    attributes = call_attributes(task.app, task.name, vars(request), terms)
    attributes |= shared_attributes(getattr(span, "resource", None))
    attributes |= slot
    attributes[names.WORKER] = request.hostname or ""
    span.set_attributes(attributes)
    span.add_event(names.EVENT_SLOT, slot)
    span.add_event(names.EVENT_STARTED)


def shared_attributes(resource: Any) -> Mapping[str, Any]:
    """Return the attributes that a span copies from its resource."""
    global _shared
    if resource is not _shared[0]:
        known = resource.attributes if resource is not None else {}
        _shared = resource, {key: known[key] for key in names.RESOURCE_ATTRIBUTES if key in known}
    return _shared[1]


#: The last resource (a process has one), and the attributes that are copied from it.
_shared: tuple[Any, dict[str, Any]] = (None, {})


def call_attributes(
    app: Any, task_name: str, request: Mapping[str, Any], terms: Terms
) -> dict[str, Any]:
    """Return the span attributes of a call that are known before it runs.

    Args:
        app: The Celery app.
        task_name: Name of the task.
        request: Headers of the message, and those that the worker added.
        terms: Lane and limits. Arguments are never included: they may hold secrets.
    """
    queue = (request.get("delivery_info") or {}).get("routing_key") or ""
    attributes: dict[str, Any] = {
        names.TASK_ID: request["id"],
        names.TASK_NAME: task_name,
        names.LANE: terms.lane,
        names.QUEUE: queue,
        names.ATTEMPT: (request.get("retries") or 0) + 1,
        names.SOFT_LIMIT: terms.soft,
        names.HARD_LIMIT: terms.hard,
        names.MESSAGING_SYSTEM: _messaging_system(app),
        names.MESSAGING_OPERATION_NAME: "process",
        names.MESSAGING_OPERATION_TYPE: "process",
        names.MESSAGING_DESTINATION: queue,
        names.MESSAGING_MESSAGE_ID: request["id"],
    }
    if terms.limits:
        attributes |= {names.LIMITS: terms.limits, names.LIMIT_WAIT: terms.limit_wait}
    for attribute, header in (
        (names.IDEMPOTENCY_KEY, HEADER_IDEMPOTENCY_KEY), (names.SCOPE, HEADER_SCOPE),
    ):  # fmt: skip
        if request.get(header):
            attributes[attribute] = request[header]
    return attributes


def _messaging_system(app: Any) -> str:
    """Return the broker's name; cached, because reading the configuration is slow."""
    system = _systems.get(app)
    if system is None:
        broker = Broker.at(app.conf.broker_read_url)
        scheme = (addresses(app.conf.broker_read_url) or [""])[0].partition(":")[0]
        system = broker.value if broker is not None and scheme else scheme or "memory"
        _systems[app] = system
    return system


_systems: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def end(span: Span, call: Call, outcome: Outcome, waited: float, *, attributed: bool) -> None:
    """Set the attributes for the end and the usage of the call.

    Args:
        span: The open span of the call.
        call: The call, closed.
        outcome: How it ended.
        waited: Seconds between publishing, or the ETA, and its start.
        attributed: Whether the memory of the process is that of this call alone.
    """
    span.set_attributes(
        {
            names.OUTCOME: outcome.value,
            names.DURATION: call.wall_seconds,
            names.WAIT: waited,
            names.SOFT_EXCEEDED: call.soft_exceeded,
            names.RSS_BEFORE: call.rss_before,
            names.RSS_AFTER: call.rss_after,
            names.RSS_DELTA: call.rss_after - call.rss_before,
            names.RSS_PEAK: call.rss_peak,
            names.RSS_ATTRIBUTED: attributed,
            names.TWIN: call.twin,
        }
    )
    if call.soft_exceeded:
        span.add_event(names.EVENT_SOFT_LIMIT, {names.SOFT_LIMIT: call.limits.soft})
    if outcome.value == "hard_time_limit":
        span.add_event(names.EVENT_HARD_LIMIT, {names.HARD_LIMIT: call.limits.hard})
    if call.memory_warned:
        span.add_event(names.EVENT_MEMORY_WARNING, {names.RSS_PEAK: call.rss_peak})
    succeeded = outcome.value == "succeeded"
    span.add_event(names.EVENT_SUCCEEDED if succeeded else names.EVENT_FAILED)
    span.add_event(
        names.EVENT_COMPLETED, {names.OUTCOME: outcome.value, names.DURATION: call.wall_seconds}
    )


def leave_open(task: Any, task_id: str) -> None:
    """Prevent the span of a call whose process is about to exit from being ended here.

    The worker ends it, with the same span id (:mod:`celery_budgets.telemetry.killed_spans`);
    ended in both places, it would be exported twice.
    """
    spans = vars(task).get(_SPANS_OF_TASK)
    if spans and (task_id, False) in spans:
        from opentelemetry.trace import INVALID_SPAN

        # The activation, when it is garbage-collected, would end the span.
        spans[task_id, False][0].end = lambda *_, **__: None
        spans[task_id, False] = (INVALID_SPAN, nullcontext(), None)


def flush(seconds: float) -> None:
    """Export the buffered spans of this process within *seconds*; never raise."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return
    try:
        force_flush = getattr(trace.get_tracer_provider(), "force_flush", None)
        if force_flush is not None:
            force_flush(timeout_millis=int(seconds * 1000))
    except Exception:
        logger.warning("budgets.flush_failed: spans of this process may be missing", exc_info=True)


BEFORE_EXIT.append(flush)
