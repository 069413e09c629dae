"""Spans of real calls: those of the instrumentation, named and described by their lane."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from functools import cached_property

import pytest

from celery_budgets.telemetry import attributes as names
from tests.support.apps import fresh_app
from tests.support.places import ROOT, json_lines
from tests.support.waiting import wait_until

APP = "tests.worker.spans_app"
QUEUES = ("-Q", "file_read,critic,tool_call", "-c", "2")


#: Environment of the program and its worker, by what is tried; all of them run at once.
VARIANTS = {
    "default": {"LIMITED": "1"},
    "tool {task} in {lane}": {"CELERY_BUDGETS_SPAN_NAME": "tool {task} in {lane}"},
    "fixed": {"CELERY_BUDGETS_SPAN_NAME": "fixed"},
    "the original name": {"SPAN_NAME_NONE": "1"},
    "no tracing, nobody": {"CELERY_BUDGETS_TRACING": "off"},
    "no tracing, the program": {"CELERY_BUDGETS_TRACING": "off", "INSTRUMENT": "1"},
    "pool provider, with instrument()": {
        "PROVIDER_SET": "in each pool process", "INSTRUMENT": "1",
    },
    "pool provider, alone": {"PROVIDER_SET": "in each pool process"},
}  # fmt: skip


class Traced:
    """Runs the program of ``spans_app`` against one worker, and reads what both exported."""

    def __init__(self, worker, servers, folder, environment):
        self.folder = folder
        folder.mkdir()
        environment = {"SPANS": str(folder), **environment}
        self.worker = worker(APP, *QUEUES, env=environment, servers=servers, ready=False)
        self._program = subprocess.Popen(
            [sys.executable, "-m", APP],
            env=os.environ | servers.environment | environment | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    @cached_property
    def ids(self):
        """The task ids of the program's calls, when all of them have ended."""
        output, errors = self._program.communicate(timeout=90)
        assert self._program.returncode == 0, errors + self.worker.tail()
        names_ = ("read", "wrong", "retry", "memory", "plain", "by_name", "first", "second")
        return dict(zip(names_, json.loads(output), strict=False))

    def close(self):
        """End the program where no test has waited for it."""
        with self._program as program:
            if program.poll() is None:
                program.kill()

    def spans(self):
        return [{**span, "pid": int(path.stem)} for path, span in json_lines(self.folder)]

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


@pytest.fixture(scope="module")
def traced(module_worker, new_servers, tmp_path_factory):
    """``traced(variant)`` gives one run, when its calls have ended."""
    folder = tmp_path_factory.mktemp("spans")
    with ExitStack() as stack:
        runs = {
            variant: Traced(module_worker, new_servers(), folder / str(number), environment)
            for number, (variant, environment) in enumerate(VARIANTS.items())
        }
        for run in runs.values():
            stack.callback(run.close)

        def ended(variant):
            assert runs[variant].ids
            return runs[variant]

        yield ended


@pytest.fixture
def run(traced):
    """One run with everything as it is by default."""
    return traced("default")


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


def test_the_span_of_a_call_with_limits(run):
    """By name, never by key; and how long they kept it, also while it waited aside."""
    spans = [run.of_call(name)[0]["attributes"] for name in ("first", "second")]
    assert [list(said[names.LIMITS]) for said in spans] == [["api", "tenant"]] * 2
    waits = sorted(said[names.LIMIT_WAIT] for said in spans)
    assert waits[0] < waits[1]
    assert 0.4 < waits[1] < 30
    (without,) = run.of_call("read")
    assert not {names.LIMITS, names.LIMIT_WAIT} & set(without["attributes"])


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
    run = traced(configured)
    (span,) = run.of_call("read")
    assert span["name"] == name


def test_the_original_name(traced):
    """`budgets_span_name = None` keeps the instrumentation's name, and describes the span."""
    run = traced("the original name")
    (span,) = run.of_call("read")
    assert span["name"] == "run/fs_read"
    assert span["attributes"][names.LANE] == "file_read"


@pytest.mark.parametrize("who", ["nobody", "the program"])
def test_without_tracing_spans_stay_as_they_are(traced, who):
    """`budgets_tracing = False`: no instrumentation is started, and one that runs is left alone."""
    run = traced(f"no tracing, {who}")
    run.worker.stop()
    spans = [s for s in run.spans() if s["kind"] == "SpanKind.CONSUMER"]
    if who == "nobody":
        assert spans == []
        return
    assert {s["name"] for s in spans} == {"run/fs_read", "run/critics_run", "run/plain"}
    for span in spans:
        assert not any(name.startswith("celery_budgets.") for name in span["attributes"])


@pytest.mark.parametrize("how", ["with instrument()", "alone"])
def test_a_provider_that_is_set_in_each_pool_process(traced, how):
    """In `worker_process_init`, where OpenTelemetry's own guide sets it."""
    run = traced(f"pool provider, {how}")
    (span,) = run.of_call("read")
    assert span["name"] == "worker_call:file_read"
    assert span["attributes"][names.OUTCOME] == "succeeded"


@pytest.fixture(scope="module")
def untraced(module_worker, new_servers):
    """A worker without any provider, by the way in which its pool processes are started."""
    return {
        method: module_worker(
            APP, "-Q", "tool_call", "-c", "1",
            env={"POOL_START_METHOD": method}, servers=new_servers(), ready=False,
        )
        for method in ("fork", "spawn")
    }  # fmt: skip


@pytest.fixture
def joined(untraced):
    """``joined(method)`` gives that worker, ready, and the app connected to its servers."""
    with ExitStack() as stack:

        def join(method):
            running = untraced[method].wait_ready()
            environment = {"POOL_START_METHOD": method}
            return running, stack.enter_context(fresh_app(APP, running.servers, environment))

        yield join


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_without_a_provider_nothing_is_imported(joined, method):
    """A pool process that nobody traces has no tracing SDK in it, however it was started.

    Other parts may be there by no doing of ours: redis-py imports the SDK's metrics.
    """
    _, app = joined(method)
    tracing = ("opentelemetry.sdk.trace", "opentelemetry.instrumentation")
    assert [name for name in app.modules.delay().get(timeout=30) if name.startswith(tracing)] == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_calls_are_measured_however_a_process_was_started(joined, method):
    """A spawned pool process reads its settings anew, with the worker's variables around it."""
    running, app = joined(method)
    app.modules.delay().get(timeout=30)
    running.wait_for_log("budgets.call_ended", "outcome=succeeded")
    assert "budgets.begin_failed" not in running.log
    assert app.budgets.statistics(timeout=10).total.rss_peak_bytes
