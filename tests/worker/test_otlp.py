"""The standard OTEL_* variables alone: spans and metrics arrive at a collector over HTTP."""

from __future__ import annotations

import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.marks import first_of
from tests.support.waiting import wait_until

APP = "tests.worker.limits_app"
FAILURES = "celery_budgets_telemetry_failures_total"


@pytest.fixture
def collector():
    """A collector that keeps what it is sent, by path."""
    received = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.setdefault(self.path, []).append(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()


def variables(endpoint):
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_METRIC_EXPORT_INTERVAL": "300",
        "OTEL_SERVICE_NAME": "tools",
        "CELERY_BUDGETS_METRICS_PORT": "0",
    }


def sent(received, path, text):
    return any(text.encode() in body for body in received.get(path, ()))


def test_spans_and_metrics_go_where_the_variables_say(worker, load_app, collector):
    """No line of code about telemetry in the app: the environment is enough."""
    endpoint, received = collector
    limits = load_app(APP)
    running = worker(APP, "-Q", "lane", "-c", "2", env=variables(endpoint))
    assert limits.quick.delay("told").get(timeout=20) == "told"
    limits.swallowing.delay()
    for path, text in (
        ("/v1/traces", "worker_call:lane"),
        ("/v1/traces", "hard_time_limit"),
        ("/v1/metrics", "celery_budgets.calls"),
        ("/v1/metrics", "celery_budgets.call_duration"),
    ):
        wait_until(lambda: sent(received, path, text), text, timeout=20, detail=running.tail)  # noqa: B023


def test_spans_go_to_each_exporter_that_is_named(worker, load_app, collector):
    """To the console of the worker and to the collector; metrics to nobody."""
    endpoint, received = collector
    limits = load_app(APP)
    environment = variables(endpoint) | {
        "OTEL_TRACES_EXPORTER": "console, otlp", "OTEL_METRICS_EXPORTER": "none",
    }  # fmt: skip
    running = worker(APP, "-Q", "lane", "-c", "1", env=environment)
    assert limits.quick.delay("told").get(timeout=20) == "told"
    running.wait_for_log('"name": "worker_call:lane"')
    arrived = lambda: sent(received, "/v1/traces", "worker_call:lane")  # noqa: E731
    wait_until(arrived, "it arrives", timeout=20, detail=running.tail)
    assert running.stop() == 0
    assert "/v1/metrics" not in received


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value"),
    first_of(("OTEL_TRACES_SAMPLER", "always_off"), ("OTEL_TRACES_EXPORTER", "none")),
)
def test_no_span_is_sent_that_the_variables_do_not_want(
    worker, load_app, collector, variable, value
):
    """Nor that of a killed call, or of one that is revoked before it begins."""
    endpoint, received = collector
    limits = load_app(APP)
    environment = variables(endpoint) | {variable: value}
    running = worker(APP, "-Q", "lane", "-c", "1", env=environment)
    limits.swallowing.delay()
    limits.quick.apply_async(expires=-1)
    assert limits.quick.delay("after").get(timeout=20) == "after"
    arrived = lambda: sent(received, "/v1/metrics", "revoked")  # noqa: E731
    wait_until(arrived, "metrics arrive", timeout=20, detail=running.tail)
    assert running.stop() == 0
    assert "/v1/traces" not in received


def test_a_collector_that_is_down_is_counted(worker, load_app):
    """Calls go on; the failures are counted by the worker, also those of its pool processes."""
    limits = load_app(APP)
    environment = variables("http://127.0.0.1:9") | {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    running = worker(APP, "-Q", "lane", "-c", "2", env=environment)
    results = [limits.quick.delay(number) for number in range(20)]
    assert [result.get(timeout=20) for result in results] == list(range(20))
    url = running.wait_for_log("budgets.metrics_served").partition("url=")[2].split()[0]

    def failures():
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        line = next(
            x for x in text.splitlines() if x.startswith("celery_budgets_telemetry_failures_total")
        )
        return float(line.split()[-1])

    wait_until(failures, "a failure is counted", timeout=30, detail=running.tail)


@pytest.mark.slow
def test_only_the_worker_sends_metrics(worker, load_app, collector):
    """A process that was forked after the first export sends none of its own, nor do calls stop."""
    endpoint, received = collector
    limits = load_app(APP)
    running = worker(APP, "-Q", "lane", "-c", "1", env=variables(endpoint))
    wait_until(lambda: received.get("/v1/metrics"), "the first export", timeout=20)
    limits.swallowing.delay()
    assert limits.quick.delay("after").get(timeout=20) == "after"
    assert running.stop() == 0
    assert received["/v1/metrics"][-1].count(b"hard_time_limit") == 2  # by outcome, and as a kill
    assert not any("Pool" in line for line in running.log.splitlines() if "metrics" in line)
