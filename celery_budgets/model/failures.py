"""Failures of telemetry in this process: counted, so that silence is not taken for health."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

__all__ = ["CountingExporter", "count", "listen"]

_listeners: list[WeakMethod[Any]] = []


def listen(listener: Callable[[], None]) -> None:
    """Have *listener*, a method, told of each failure in this process, once, while it is there."""
    reference = WeakMethod(listener)
    _listeners[:] = [known for known in _listeners if known() is not None and known != reference]
    _listeners.append(reference)


def count() -> None:
    """Note one failure."""
    for reference in list(_listeners):
        listener = reference()
        if listener is not None:
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
