"""What a program that is no worker tells of its blocks: spans, metrics and records."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("opentelemetry.sdk")

PROGRAM = """
import json, sys
from contextlib import suppress
from celery import Celery
from celery_budgets import Budgets, Lane, RejectedByBudget
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter, reader, provider = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([reader]))
app = Celery("web", broker="redis://127.0.0.1:1/0")
app.conf.budgets_json_logs = True
budgets = Budgets(app, lanes=[Lane("lane", 2), Lane("one", 1)])
with trace.get_tracer("web").start_as_current_span("request"):
    with budgets.call("lane", task_id="outer", tool_name="outer", input_size="1KiB"):
        with suppress(ValueError), budgets.call("one", task_id="inner", tool_name="inner"):
            with suppress(RejectedByBudget), budgets.call("one", task_id="refused"):
                pass
            raise ValueError("wrong")
spans = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
found = {}
for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
    for point in metric.data.data_points:
        key = " ".join([metric.name, *map(str, sorted(dict(point.attributes).values()))])
        found[key] = getattr(point, "value", getattr(point, "count", None))
json.dump({"spans": spans, "metrics": found}, sys.stdout)
"""


@pytest.fixture(scope="module")
def told():
    """What a program has told: spans by task id, metrics, and records of its log."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    spans = {span["attributes"].get("celery_budgets.task.id"): span for span in said["spans"]}
    return spans, said["metrics"], [json.loads(line) for line in done.stderr.splitlines()]


def test_spans(told):
    """Each below the one around it, with what is known of a block."""
    spans, _, _ = told
    outer, inner, request = spans["outer"], spans["inner"], spans[None]
    assert outer["parent_id"] == request["context"]["span_id"]
    assert inner["parent_id"] == outer["context"]["span_id"]
    assert outer["name"] == "worker_call:lane"
    assert outer["attributes"]["celery_budgets.input_size"] == 1024
    assert outer["attributes"]["celery_budgets.time_limit.hard"] == pytest.approx(450)
    assert outer["status"]["status_code"] == "UNSET"


def test_the_span_of_what_failed(told):
    """With the error, and its status."""
    inner = told[0]["inner"]
    assert inner["status"] == {"status_code": "ERROR", "description": "ValueError: wrong"}
    assert inner["attributes"]["error.type"] == "ValueError"
    assert inner["attributes"]["celery_budgets.outcome"] == "failed"
    names = [event["name"] for event in inner["events"]]
    assert names == [
        "acquired_slot", "execution_started", "execution_failed", "call_completed", "exception",
    ]  # fmt: skip


def test_the_span_of_what_was_refused(told):
    """It never started."""
    refused = told[0]["refused"]
    assert refused["attributes"]["celery_budgets.outcome"] == "rejected"
    assert refused["attributes"]["error.type"] == "rejected"
    assert "execution_started" not in [event["name"] for event in refused["events"]]


def test_metrics(told):
    """Those of a worker, as far as they are of calls."""
    _, metrics, _ = told
    assert metrics["celery_budgets.calls lane outer succeeded"] == 1
    assert metrics["celery_budgets.calls failed inner one"] == 1
    assert metrics["celery_budgets.rejections nested one"] == 1
    assert metrics["celery_budgets.call_duration lane outer"] == 1


def test_records(told):
    """One JSON line per block, with the id of its trace."""
    spans, _, records = told
    ended = {line["task_id"]: line for line in records if line["event"] == "budgets.call_ended"}
    assert {key: line["outcome"] for key, line in ended.items()} == {
        "outer": "succeeded", "inner": "failed", "refused": "rejected",
    }  # fmt: skip
    trace_id = spans["outer"]["context"]["trace_id"].removeprefix("0x")
    assert {line["trace_id"] for line in ended.values()} == {trace_id}
    assert ended["refused"]["seconds"] is None
