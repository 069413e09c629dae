"""Spans into files, and back: one JSON line each, with nothing else to install.

A real deployment sends its spans to a collector instead (``OTEL_EXPORTER_OTLP_ENDPOINT``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

__all__ = ["DIRECTORY_VARIABLE", "RecordedSpan", "export_where_asked", "read_traces"]

#: Names the directory for the spans; without it there are none.
DIRECTORY_VARIABLE = "TOOLS_TRACES"


def export_where_asked() -> None:
    """Set a tracer provider that appends to a file of this process, if the variable is set.

    Each span is written as it ends: what a killed process has finished is not lost.
    """
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if not directory:
        return
    # Pool processes inherit the open file; whole lines appended by one write do not mix.
    file = Path(directory, f"spans-{os.getpid()}.jsonl").open("a", encoding="utf-8")  # noqa: SIM115
    exporter = ConsoleSpanExporter(out=file, formatter=_line)
    provider = TracerProvider(resource=Resource.create({"service.name": "examples.tools"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def _line(span: ReadableSpan) -> str:
    return f"{span.to_json(indent=None)}\n"


@dataclass
class RecordedSpan:
    """One span as it was exported, and the spans below it."""

    span_id: str
    parent_id: str | None
    name: str
    #: Seconds since the epoch.
    started_at: float
    ended_at: float
    attributes: dict[str, Any]
    children: list[RecordedSpan] = field(default_factory=list)

    def walk(self, depth: int = 0) -> Iterator[tuple[RecordedSpan, int]]:
        """Yield this span and all below it with their depth, in the order of their start."""
        yield self, depth
        for child in sorted(self.children, key=lambda span: span.started_at):
            yield from child.walk(depth + 1)


def read_traces(directory: Path) -> list[RecordedSpan]:
    """Return the root span of every trace in *directory*; broken lines are left out."""
    spans: dict[str, RecordedSpan] = {}
    for path in directory.glob("*.jsonl"):
        with path.open(encoding="utf-8") as file:
            spans.update((span.span_id, span) for span in map(_parse, file) if span)
    roots: list[RecordedSpan] = []
    for span in spans.values():
        parent = spans.get(span.parent_id) if span.parent_id else None
        (parent.children if parent else roots).append(span)
    return roots


def _parse(line: str) -> RecordedSpan | None:
    try:
        data = json.loads(line)
        return RecordedSpan(
            span_id=data["context"]["span_id"],
            parent_id=data["parent_id"],
            name=data["name"],
            started_at=datetime.fromisoformat(data["start_time"]).timestamp(),
            ended_at=datetime.fromisoformat(data["end_time"]).timestamp(),
            attributes=data["attributes"],
        )
    except (ValueError, KeyError, TypeError):
        return None  # a process was killed while it wrote this line
