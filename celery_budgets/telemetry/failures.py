"""Failures of telemetry in this process: counted, so that silence is not taken for health."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["CountingExporter", "count", "listen"]

_listeners: list[Callable[[], None]] = []


def listen(listener: Callable[[], None]) -> None:
    """Have *listener* told of each failure in this process."""
    _listeners.append(listener)


def count() -> None:
    """Note one failure."""
    for listener in _listeners:
        listener()


class CountingExporter:
    """Stands in front of a span exporter of this package's making, and counts its failures.

    Args:
        exporter: An ``opentelemetry.sdk.trace.export.SpanExporter``.
    """

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter

    def export(self, spans: Any) -> Any:
        """Export *spans*; a failure goes on to the processor as it came."""
        try:
            result = self._exporter.export(spans)
        except Exception:
            count()
            raise
        if result.name != "SUCCESS":
            count()
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exporter, name)
