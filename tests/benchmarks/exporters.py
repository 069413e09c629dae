"""Telemetry that goes nowhere, for the ways that are measured with it on."""

from __future__ import annotations

from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

#: Spans kept: a worker that is measured for minutes must not grow by them.
_MOST = 5_000


class Recent(InMemorySpanExporter):
    """Keeps the newest spans in memory."""

    def export(self, spans: Any) -> Any:
        if len(self.get_finished_spans()) > _MOST:
            self.clear()
        return super().export(spans)


def provide() -> None:
    """Set providers of spans and metrics, and start Celery's instrumentation."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Recent()))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    CeleryInstrumentor().instrument()
