"""Counts failures of telemetry in this process, so that missing data is not taken for health."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

__all__ = ["CountingExporter", "count", "listen"]

_listeners: list[WeakMethod[Any]] = []


def listen(listener: Callable[[], None]) -> None:
    """Call *listener*, a bound method, at each failure; registered once and held weakly."""
    reference = WeakMethod(listener)
    _listeners[:] = [known for known in _listeners if known() is not None and known != reference]
    _listeners.append(reference)


def count() -> None:
    """Count one failure."""
    for reference in list(_listeners):
        listener = reference()
        if listener is not None:
            listener()


class CountingExporter:
    """Wraps a span exporter that this package created, and counts its failures.

    Args:
        exporter: An ``opentelemetry.sdk.trace.export.SpanExporter``.
    """

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter

    def export(self, spans: Any) -> Any:
        """Export *spans*; a failure is counted and passed on to the span processor."""
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
