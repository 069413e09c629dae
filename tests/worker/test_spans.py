"""Spans of real calls: those of the instrumentation, named and described by their lane."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from celery_budgets.telemetry import names
from tests.support import ROOT, wait_until

APP = "tests.worker.spans_app"
QUEUES = ("-Q", "file_read,critic,tool_call", "-c", "2")


class Traced:
    """Runs the program of ``spans_app`` against one worker, and reads what both exported."""

    def __init__(self, worker, servers, folder, environment):
        self.folder = folder
        folder.mkdir()
        self.environment = {"SPANS": str(folder), **environment}
        self.worker = worker(APP, *QUEUES, env=self.environment)
        done = subprocess.run(
            [sys.executable, "-m", APP],
            env=os.environ | servers.environment | self.environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=60, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + self.worker.tail()
        ids = json.loads(done.stdout)
        names_ = ("read", "wrong", "retry", "memory", "plain", "by_name")
        self.ids = dict(zip(names_, ids, strict=True))

    def spans(self):
        return [
            {**json.loads(line), "pid": int(path.stem)}
            for path in self.folder.glob("*.jsonl")
            for line in path.read_text().splitlines()
        ]

    def of_call(self, call, kind="CONSUMER", count=1):
        """Return the spans of *call*, when there are *count*."""

        def found():
            spans = [
                span
                for span in self.spans()
                if self.ids[call] in (span["attributes"].get("messaging.message.id"),
                                      span["attributes"].get("celery_budgets.task.id"))
                and span["kind"] == f"SpanKind.{kind}"
            ]  # fmt: skip
            return spans if len(spans) == count else None

        return wait_until(found, f"{count} spans of {call}", detail=lambda: str(self.spans()))


@pytest.fixture
def traced(worker, servers, tmp_path):
    """``traced(NAME="value")`` runs the program and its worker with these variables."""
    return lambda **environment: Traced(worker, servers, tmp_path / "spans", environment)


@pytest.fixture(scope="module")
def run(module_worker, module_servers, tmp_path_factory):
    """One run with everything as it is by default."""
    return Traced(module_worker, module_servers, tmp_path_factory.mktemp("run") / "spans", {})


def test_the_span_of_a_call(run):
    """Named after its lane, described in full, below the producer's span and above the tool's."""
    (span,) = run.of_call("read")
    (sent,) = run.of_call("read", "PRODUCER")
    assert span["name"] == "worker_call:file_read"
    assert span["parent_id"] == sent["context"]["span_id"]
    assert span["context"]["trace_id"] == sent["context"]["trace_id"]
    assert span["pid"] != sent["pid"]
    inside = next(s for s in run.spans() if s["parent_id"] == span["context"]["span_id"])
    assert inside["name"] == "inside"
    said = span["attributes"]
    expected = {
        "service.name": "tools",
        "service.version": "1.2.3",
        "deployment.environment.name": "test",
        names.TASK_ID: run.ids["read"],
        names.TASK_NAME: "fs_read",
        names.LANE: "file_read",
        names.QUEUE: "file_read",
        names.OUTCOME: "succeeded",
        names.ATTEMPT: 1,
        names.SOFT_LIMIT: 300.0,
        names.HARD_LIMIT: 450.0,
        names.SOFT_EXCEEDED: False,
        names.RSS_ATTRIBUTED: True,
    }
    assert {name: said.get(name) for name in expected} == expected
    assert said[names.WORKER].startswith(f"{run.worker.name}@")
    assert 0 < said[names.DURATION] < 60
    # 20 MB are kept, so they are in the process after the call; the rest of it is its own size.
    assert said[names.RSS_DELTA] == said[names.RSS_AFTER] - said[names.RSS_BEFORE]
    assert said[names.RSS_DELTA] > 18_000_000
    assert said[names.RSS_PEAK] >= said[names.RSS_AFTER] > 20_000_000
    assert span["status"]["status_code"] == "UNSET"

    (by_name,) = run.of_call("by_name")
    assert by_name["name"] == "worker_call:file_read"


def test_the_spans_of_calls_that_do_not_succeed(run):
    """Each says its outcome; an attempt more is a span more."""
    (wrong,) = run.of_call("wrong")
    assert wrong["attributes"][names.OUTCOME] == "failed"
    assert wrong["status"]["status_code"] == "ERROR"
    assert wrong["name"] == "worker_call:critic"
    retried = sorted(run.of_call("retry", count=2), key=lambda s: s["attributes"][names.ATTEMPT])
    assert [s["attributes"][names.OUTCOME] for s in retried] == ["retried", "failed"]
    assert [s["attributes"][names.ATTEMPT] for s in retried] == [1, 2]
    (memory,) = run.of_call("memory")
    assert memory["attributes"][names.OUTCOME] == "memory_limit"
    assert memory["status"]["status_code"] == "ERROR"


def test_a_plain_task_keeps_its_span(run):
    """It has no lane, so nothing is said about one."""
    span = next(
        span for span in wait_until(
            lambda: [s for s in run.spans() if s["name"] == "run/plain"], "the plain span"
        )
    )  # fmt: skip
    assert not any(name.startswith("celery_budgets.") for name in span["attributes"])


@pytest.mark.parametrize(
    ("configured", "name"),
    [("tool {task} in {lane}", "tool fs_read in file_read"), ("fixed", "fixed")],
)
def test_a_name_of_ones_own(traced, configured, name):
    """`budgets_span_name` may use the lane and the task."""
    run = traced(CELERY_BUDGETS_SPAN_NAME=configured)
    (span,) = run.of_call("read")
    assert span["name"] == name


def test_the_original_name(traced):
    """`budgets_span_name = None` keeps the instrumentation's name, and describes the span."""
    run = traced(SPAN_NAME_NONE="1")
    (span,) = run.of_call("read")
    assert span["name"] == "run/fs_read"
    assert span["attributes"][names.LANE] == "file_read"


@pytest.mark.parametrize("who", ["nobody", "the program"])
def test_without_tracing_spans_stay_as_they_are(traced, who):
    """`budgets_tracing = False`: no instrumentation is started, and one that runs is left alone."""
    environment = {"INSTRUMENT": "1"} if who == "the program" else {}
    run = traced(CELERY_BUDGETS_TRACING="off", **environment)
    run.worker.stop()
    spans = [s for s in run.spans() if s["kind"] == "SpanKind.CONSUMER"]
    if who == "nobody":
        assert spans == []
        return
    assert {s["name"] for s in spans} == {"run/fs_read", "run/critics_run", "run/plain"}
    for span in spans:
        assert not any(name.startswith("celery_budgets.") for name in span["attributes"])


@pytest.mark.parametrize("instrument", [True, False], ids=["with instrument()", "alone"])
def test_a_provider_that_is_set_in_each_pool_process(traced, instrument):
    """In `worker_process_init`, where OpenTelemetry's own guide sets it."""
    environment = {"INSTRUMENT": "1"} if instrument else {}
    run = traced(PROVIDER_SET="in each pool process", **environment)
    (span,) = run.of_call("read")
    assert span["name"] == "worker_call:file_read"
    assert span["attributes"][names.OUTCOME] == "succeeded"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_without_a_provider_nothing_is_imported(worker, load_app, method):
    """A pool process that nobody traces has no tracing SDK in it, however it was started.

    Other parts may be there by no doing of ours: redis-py imports the SDK's metrics.
    """
    environment = {"POOL_START_METHOD": method}
    worker(APP, "-Q", "tool_call", "-c", "1", env=environment)
    app = load_app(APP, **environment)
    tracing = ("opentelemetry.sdk.trace", "opentelemetry.instrumentation")
    assert [name for name in app.modules.delay().get(timeout=30) if name.startswith(tracing)] == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_calls_are_measured_however_a_process_was_started(worker, load_app, method):
    """A spawned pool process reads its settings anew, with the worker's variables around it."""
    environment = {"POOL_START_METHOD": method}
    running = worker(APP, "-Q", "tool_call", "-c", "1", env=environment)
    app = load_app(APP, **environment)
    app.modules.delay().get(timeout=30)
    running.wait_for_log("budgets.call_ended", "outcome=succeeded")
    assert "budgets.begin_failed" not in running.log
    assert app.budgets.statistics(timeout=2).total.rss_peak_bytes
