"""The whole truth: spans, metrics, records and statistics of calls that end in every way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections import Counter

import pytest

from tests.support.marks import first_of
from tests.support.places import ROOT, json_lines
from tests.support.waiting import wait_until

APP = "tests.worker.telemetry_app"
MANY_OF_EVERY_KIND = (
    "succeeded=110 failed=40 retried=25 soft_time_limit=16 hard_time_limit=12 hard_in_c=6 "
    "worker_lost=12 memory_limit=20 rejected=20 revoked_waiting=20 revoked_running=4"
)
SOME_OF_EVERY_KIND = (
    "succeeded=20 failed=8 retried=5 soft_time_limit=4 hard_time_limit=3 hard_in_c=1 "
    "worker_lost=3 memory_limit=4 rejected=4 revoked_waiting=4 revoked_running=2"
)


@pytest.fixture
def spans_folder(tmp_path):
    folder = tmp_path / "spans"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(spans_folder):
    """What worker and caller share."""
    return {
        "SPANS": str(spans_folder),
        "CELERY_BUDGETS_JSON_LOGS": "true",
        "CELERY_BUDGETS_METRICS_PORT": "0",
    }


def send(servers, environment, *kinds):
    """Make the calls in a process of their own; return the deliveries that must come of it."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {APP} as app, sys; app.main(sys.argv[1:])", *kinds],
        cwd=ROOT, env=os.environ | servers.environment | environment,
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Counter(json.loads(done.stdout.splitlines()[-1]))


def spans_in(folder):
    """Return every span that was exported, by whichever process."""
    return [span for _, span in json_lines(folder)]


def calls_in(folder):
    return [span for span in spans_in(folder) if span["name"].startswith("worker_call:")]


def by_outcome(spans):
    return Counter(span["attributes"]["celery_budgets.outcome"] for span in spans)


def records_in(running):
    """Return the records of ended calls in the worker's JSON log."""
    lines = (line for line in running.log.splitlines() if line.startswith("{"))
    records = [json.loads(line) for line in lines]
    return [record for record in records if record["event"] == "budgets.call_ended"]


def metrics_of(running):
    """Return what the worker answers Prometheus, as (labels text, value) of the calls."""
    line = running.wait_for_log("budgets.metrics_served")
    url = line.partition("url=")[2].split('"')[0]
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    counts = Counter()
    for sample in text.splitlines():
        if sample.startswith("celery_budgets_calls_total{"):
            counts[sample.partition('outcome="')[2].partition('"')[0]] += float(sample.split()[-1])
    return counts


def assert_whole(spans):
    """Every parent exists, and no span id comes twice."""
    ids = [span["context"]["span_id"] for span in spans]
    assert len(ids) == len(set(ids))
    parents = {span["parent_id"] for span in spans} - {None}
    orphans = parents - set(ids)
    assert not orphans, [span["name"] for span in spans if span["parent_id"] in orphans]


@pytest.mark.parametrize(
    "kinds", first_of(SOME_OF_EVERY_KIND, MANY_OF_EVERY_KIND), ids=["some", "many"]
)
def test_every_call_is_told_once_in_every_way(
    worker, load_app, servers, environment, spans_folder, kinds
):
    """Exported spans = metrics = statistics = records = deliveries, by outcome."""
    running = worker(APP, "-Q", "lane", env=environment)
    expected = send(servers, environment, *kinds.split())
    app = load_app(APP, NO_PROVIDER="1")
    wait_until(
        lambda: app.budgets.statistics().total.total >= expected.total(),
        "all deliveries have ended", detail=running.tail,
    )  # fmt: skip
    assert app.budgets.statistics(timeout=10).total.outcomes == expected
    assert Counter(record["outcome"] for record in records_in(running)) == expected
    assert metrics_of(running) == expected
    running.stop()
    calls = calls_in(spans_folder)
    assert by_outcome(calls) == expected
    assert_whole(spans_in(spans_folder))
    killed = [c for c in calls if c["attributes"]["celery_budgets.outcome"] == "hard_time_limit"]
    assert {c["status"]["status_code"] for c in killed} == {"ERROR"}
    assert all(c["attributes"]["celery_budgets.rss.peak"] > 10_000_000 for c in killed)
    # They queued behind each other, four at a time.
    assert all(c["attributes"]["celery_budgets.queue_wait"] > 0 for c in killed)


@pytest.mark.parametrize("most", first_of("0", "1"))
def test_nothing_is_lost_at_the_end_of_a_process(worker, servers, environment, spans_folder, most):
    """A process for each call, or a warm stop right after the last one."""
    environment = environment | {"MAX_TASKS": most}
    running = worker(APP, "-Q", "lane", env=environment)
    expected = send(servers, environment, "succeeded=30", "failed=6", "hard_time_limit=2")
    running.stop()
    assert by_outcome(calls_in(spans_folder)) == expected, running.tail()
    assert_whole(spans_in(spans_folder))


def test_a_call_span_says_everything(worker, servers, environment, spans_folder):
    """Attributes, events and the parent of one ordinary call."""
    running = worker(APP, "-Q", "lane", env=environment)
    send(servers, environment, "succeeded=1")
    running.stop()
    (call,) = calls_in(spans_folder)
    said = call["attributes"]
    assert call["name"] == "worker_call:lane"
    assert said["service.name"] == "tools"
    assert said["service.version"] == "7"
    assert said["deployment.environment.name"] == "test"
    assert said["celery_budgets.queue"] == said["messaging.destination.name"] == "lane"
    assert said["messaging.system"] == "redis"
    assert (said["celery_budgets.lane.active"], said["celery_budgets.lane.limit"]) == (1, 4)
    assert said["celery_budgets.time_limit.hard"] == 0.75
    assert said["celery_budgets.rss.delta"] == (
        said["celery_budgets.rss.after"] - said["celery_budgets.rss.before"]
    )
    assert [event["name"] for event in call["events"]] == [
        "acquired_slot", "execution_started", "execution_succeeded", "call_completed",
    ]  # fmt: skip
    inside = next(span for span in spans_in(spans_folder) if span["name"] == "inside")
    assert inside["parent_id"] == call["context"]["span_id"]


@pytest.mark.parametrize("trouble", first_of("slow", "raising"))
def test_an_exporter_in_trouble_leaves_the_calls_alone(worker, servers, environment, trouble):
    """All calls end as they should, and soon, while spans cannot be exported."""
    environment = environment | {"EXPORTER": trouble}
    worker(APP, "-Q", "lane", env=environment)
    caller = environment | {"EXPORTER": ""}
    expected = send(servers, caller, "succeeded=60", "failed=10")
    assert expected == {"succeeded": 60, "failed": 10}


def test_no_secret_is_told(worker, load_app, servers, environment, spans_folder):
    """A token in the arguments is in no span of ours, no record, no metric, no answer."""
    secret = "s3cr3t-t0k3n"
    running = worker(APP, "-Q", "lane", env=environment)
    app = load_app(APP, NO_PROVIDER="1")
    result = app.failed.delay(secret, token=secret)
    wait_until(result.ready, "the call has ended")
    wait_until(lambda: records_in(running), "its record")
    control = app.app.control
    answer = json.dumps(control.broadcast("budgets", reply=True, timeout=10, limit=1))
    (stats,) = control.inspect(timeout=10, limit=1).stats().values()
    running.stop()
    (call,) = calls_in(spans_folder)
    told = [*map(json.dumps, (call, records_in(running), stats["budgets"])), answer]
    assert not [text for text in told if secret in text]
