"""Creates a meter provider from the ``OTEL_*`` variables, for a worker that forks.

The SDK's periodic reader restarts its thread in every forked process, and each would send the
worker's metrics again. Here a single thread of the worker triggers each export, and forked
processes do not have it.

See also: :mod:`celery_budgets.telemetry.metrics`, which prefers a provider of the program.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
from typing import Any

from celery_budgets.model import failures
from celery_budgets.telemetry.exporters import exporters_for

__all__ = ["make_meter_provider"]

logger = logging.getLogger(__name__)

#: Interval between exports if OTEL_METRIC_EXPORT_INTERVAL is not set, milliseconds.
_INTERVAL = 60_000.0
#: Longest delay of the worker's exit by the last export, seconds.
_PARTING_SECONDS = 1.0


def make_meter_provider() -> Any:
    """Return a provider with the requested exporters; ``None`` if none is available."""
    found = list(exporters_for("METRICS"))
    if not found:
        return None
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

    readers = [
        # A pull exporter, such as that of Prometheus, is a reader itself.
        each if isinstance(each, MetricReader)
        else PeriodicExportingMetricReader(each, export_interval_millis=math.inf)
        for each in found
    ]  # fmt: skip
    provider = MeterProvider(readers, shutdown_on_exit=False)
    _Exports(provider, _interval()).start()
    return provider


def _interval() -> float:
    """Return the seconds between two exports."""
    try:
        return float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL") or _INTERVAL) / 1000
    except ValueError:
        return _INTERVAL / 1000


class _Exports(threading.Thread):
    """A thread that exports periodically, and once more when the worker exits."""

    def __init__(self, provider: Any, interval: float) -> None:
        super().__init__(name="celery-budgets-metrics", daemon=True)
        self._provider = provider
        self._interval = interval
        self._parting = threading.Event()
        self._done = threading.Event()

    def start(self) -> None:
        super().start()
        # Runs only in the worker: pool processes exit by os._exit.
        atexit.register(self._part)

    def run(self) -> None:
        while not self._parting.wait(self._interval):
            self._export()
        self._export()
        self._done.set()

    def _export(self) -> None:
        try:
            if not self._provider.force_flush():
                failures.count()
        except Exception as exc:
            failures.count()
            logger.warning("budgets.metrics_not_sent: %s", exc)

    def _part(self) -> None:
        self._parting.set()
        self._done.wait(_PARTING_SECONDS)
