"""Metrics of one worker, from its main process: OpenTelemetry instruments and Prometheus.

Both read the same statistics, so they agree with each other and with the log records of calls.
Names and units are in :data:`METRICS`; a task id is never a label.

See also: :mod:`celery_budgets.worker.remote.metrics_source`, which collects the numbers.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from celery_budgets.errors import ConfigurationError
from celery_budgets.telemetry.exporters import asked_for
from celery_budgets.telemetry.histogram import Histogram

__all__ = ["BYTES", "METRICS", "SECONDS", "Metric", "Sample", "export_to_meter", "serve"]

logger = logging.getLogger(__name__)

#: Upper bounds of histogram buckets: seconds to half an hour, bytes to 16 GiB.
SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    600.0, 1800.0,
)  # fmt: skip
BYTES = tuple(float(2**exponent) for exponent in range(24, 35))


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its kind, its unit in UCUM, its labels and its description."""

    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    help: str


#: Every metric by its Prometheus name without the prefix ``celery_budgets_``.
METRICS: dict[str, Metric] = {
    "calls": Metric("counter", "{call}", ("lane", "task", "outcome"), "Calls that have ended"),
    "call_duration_seconds": Metric("histogram", "s", ("lane", "task"), "Run time of calls"),
    "queue_wait_seconds": Metric("histogram", "s", ("lane", "task"), "Time from due to start"),
    "call_memory_peak_bytes": Metric(
        "histogram", "By", ("lane", "task"), "Highest RSS sampled during a call"
    ),
    "time_limits": Metric("counter", "{call}", ("lane", "kind"), "Calls over a time limit"),
    "kills": Metric(
        "counter", "{call}", ("lane", "reason"), "Calls killed, lost, or over a memory limit"
    ),
    "rejections": Metric("counter", "{call}", ("lane", "reason"), "Calls not admitted"),
    "lane_active": Metric("gauge", "{call}", ("lane",), "Calls that run now"),
    "lane_limit": Metric("gauge", "{call}", ("lane",), "Calls that may run at once"),
    "lane_waiting": Metric("gauge", "{call}", ("lane",), "Calls received and not started"),
    "lane_backlog": Metric(
        "gauge", "{message}", ("lane",), "Messages at the broker; the same from each worker"
    ),
    "lane_oldest_seconds": Metric(
        "gauge", "s", ("lane",), "How long the oldest message at the broker has waited"
    ),
    "lane_load": Metric(
        "gauge", "1", ("lane",), "(running + waiting + backlog) / slots, over all workers"
    ),
    "lane_slo_seconds": Metric("gauge", "s", ("lane",), "Wait that the lane promises"),
    "lane_slo_calls": Metric(
        "counter",
        "{call}",
        ("lane", "within"),
        "Calls that started within the promised wait, or not",
    ),
    "limit_in_use": Metric(
        "gauge", "{call}", ("limit",), "Places of a limit over the fleet that calls here hold"
    ),
    "limit_limit": Metric(
        "gauge", "{call}", ("limit",), "Places of that limit in all, as configured"
    ),
    "limit_waiting": Metric("gauge", "{call}", ("limit",), "Calls here that wait for that limit"),
    "limit_wait_seconds": Metric(
        "histogram", "s", ("limit",), "Time for which only limits kept a call from its start"
    ),
    "limit_throttled": Metric("counter", "{call}", ("limit",), "Calls that have closed that limit"),
    "global_active": Metric("gauge", "{call}", (), "Calls that run now, over all lanes"),
    "global_limit": Metric("gauge", "{call}", (), "Calls that may run at once over all lanes"),
    "memory_rss_bytes": Metric("gauge", "By", ("process",), "RSS: worker, or largest pool process"),
    "memory_limit_bytes": Metric("gauge", "By", ("lane", "level"), "Levels of RSS of a lane"),
    "memory_worker_bytes": Metric("gauge", "By", (), "Worker with its pool, by its gate"),
    "memory_worker_limit_bytes": Metric("gauge", "By", (), "Limit of the worker with its pool"),
    "gate_state": Metric("gauge", "1", ("state",), "1 for the state of the gate, else 0"),
    "pool_processes": Metric(
        "gauge", "{process}", ("state",), "Pool processes: up, or missing for too long"
    ),
    "pool_process_starts": Metric("counter", "{process}", (), "Pool processes started"),
    "abandoned_threads": Metric("gauge", "{thread}", (), "Threads past their hard limit"),
    "slots_recovered": Metric("counter", "{slot}", (), "Slots taken back from lost calls"),
    "redelivered": Metric("counter", "{call}", ("lane",), "Calls redelivered before they ended"),
    "telemetry_failures": Metric("counter", "{failure}", (), "Spans or records not made"),
    "build_info": Metric("gauge", "1", ("version", "worker", "pool"), "What runs here"),
}


class Sample(NamedTuple):
    """One value of one metric; a histogram's value is a :class:`Histogram`."""

    metric: str
    labels: tuple[str, ...]
    value: float | Histogram


def bounds_of(metric: Metric) -> tuple[float, ...]:
    """Return the bucket bounds of a histogram metric."""
    return SECONDS if metric.unit == "s" else BYTES


def serve(port: int, read: Callable[[], Iterable[Sample]], host: str = "127.0.0.1") -> int:
    """Serve metrics for Prometheus on *port*; return the port, for *port* 0 the chosen one.

    Args:
        port: TCP port; 0 takes a free one.
        read: Returns the current samples; called at each scrape.
        host: Address to listen on; loopback by default.

    Raises:
        ConfigurationError: prometheus-client is not installed.
        OSError: The port is taken.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )
    except ImportError:
        raise ConfigurationError(
            "budgets_metrics_port needs prometheus-client; pip install 'celery-budgets[prometheus]'"
        ) from None
    families = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}

    class Collector:
        """Renders the samples at each scrape."""

        def collect(self) -> Iterator[Any]:
            grouped: dict[str, list[Sample]] = {}
            for sample in read():
                grouped.setdefault(sample.metric, []).append(sample)
            for name, samples in grouped.items():
                metric = METRICS[name]
                kind = families.get(metric.kind, HistogramMetricFamily)
                family: Any = kind(f"celery_budgets_{name}", metric.help, labels=metric.labels)
                for sample in samples:
                    _add(family, metric, sample)
                yield family

    registry = CollectorRegistry()
    registry.register(Collector())  # type: ignore[arg-type, unused-ignore]
    server, _ = start_http_server(port, addr=host, registry=registry)
    return int(server.server_port)


def _add(family: Any, metric: Metric, sample: Sample) -> None:
    if not isinstance(sample.value, Histogram):
        family.add_metric(sample.labels, sample.value)
        return
    bounds = bounds_of(metric)
    buckets = [
        (str(bound), count)
        for bound, count in zip(bounds, sample.value.cumulative(bounds), strict=True)
    ]
    buckets.append(("+Inf", sample.value.count))
    family.add_metric(sample.labels, buckets, sum_value=sample.value.total)


def export_to_meter(read: Callable[[], Iterable[Sample]]) -> Callable[[str, Any, Any], None] | None:
    """Create the instruments; return ``None`` if there is no meter provider and none is requested.

    Counters and gauges are observable, from *read*. OpenTelemetry has no observable histogram, so
    the returned function records each value: (metric, labels, value).
    """
    provider = _meter_provider()
    if provider is None:
        return None
    meter = provider.get_meter("celery_budgets")
    histograms = {}
    for name, metric in METRICS.items():
        full = f"celery_budgets.{name.removesuffix('_seconds').removesuffix('_bytes')}"
        if metric.kind == "histogram":
            histograms[name] = meter.create_histogram(
                full, metric.unit, metric.help,
                explicit_bucket_boundaries_advisory=bounds_of(metric),
            )  # fmt: skip
            continue
        make = (
            meter.create_observable_counter
            if metric.kind == "counter"
            else meter.create_observable_gauge
        )
        make(full, [_observer(name, read)], metric.unit, metric.help)

    @lru_cache(1024)  # lanes and tasks, of which no more than 200 have labels of their own
    def attributes_of(name: str, labels: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(METRICS[name].labels, labels, strict=True))

    def record(name: str, labels: tuple[str, ...], value: float) -> None:
        histograms[name].record(value, attributes_of(name, labels))

    return record


def _meter_provider() -> Any:
    """Return the program's meter provider, else one as the ``OTEL_*`` variables say."""
    api = sys.modules.get("opentelemetry.metrics")
    if api is not None:
        provider = api.get_meter_provider()
        # The API's own providers are placeholders for one that was never set.
        if not type(provider).__module__.startswith("opentelemetry.metrics"):
            return provider
    if not asked_for("METRICS"):
        return None
    from celery_budgets.telemetry.meter_provider import make_meter_provider

    return make_meter_provider()


def _observer(name: str, read: Callable[[], Iterable[Sample]]) -> Callable[[Any], Iterator[Any]]:
    owner = os.getpid()

    def observe(_: Any) -> Iterator[Any]:
        from opentelemetry.metrics import Observation

        if os.getpid() != owner:
            return  # a forked pool process that inherited the program's provider
        for sample in read():
            if sample.metric == name and not isinstance(sample.value, Histogram):
                labels = dict(zip(METRICS[name].labels, sample.labels, strict=True))
                yield Observation(sample.value, labels)

    return observe
