"""What Prometheus reads while calls go on ending, and names that are bounded."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest
from celery.worker import state

from celery_budgets.telemetry.metrics import METRICS
from celery_budgets.worker.backlog.backlog import Backlog
from celery_budgets.worker.backlog.flow import Flow
from celery_budgets.worker.backlog.objectives import Objectives
from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.remote.metrics_source import MOST_TASKS, MetricsSource


def runtime_with(lanes):
    """A worker of those lanes that has started with four slots, and has no gate."""
    return SimpleNamespace(
        roster=Roster(), served=lanes, abandoned_threads=0, telemetry_failures=0, processes=None,
        slots=SimpleNamespace(limit_of=lambda lane: min(lane.concurrency, 4), capacity=4),
        settings=SimpleNamespace(memory_guard=False, limits={}),
        backlog=Backlog([], Flow()), peers=SimpleNamespace(load_of=lambda lane: None),
        objectives=Objectives([]), leases=None,
    )  # fmt: skip


@pytest.fixture
def meters() -> tuple[MetricsSource, Roster]:
    runtime = runtime_with([])
    return MetricsSource(runtime, ("1.0", "a@h", "prefork"), list), runtime.roster


@pytest.fixture
def fast_switches():
    """Threads take turns two hundred times as often: what can collide, does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 200)
    yield
    sys.setswitchinterval(before)


def test_a_scrape_and_the_end_of_a_call_do_not_collide(meters, fast_switches):
    """Each call may bring a new task, outcome or bucket: 4 of 10 scrapes failed once."""
    read, roster = meters[0].read, meters[1]
    left = threading.Event()

    def end_calls() -> None:
        number = 0
        while not left.is_set():
            number += 1
            with roster.tally._lock:
                calls = roster.tally._statistics.of("lane", f"task-{number % 50}")
                calls.outcomes[f"outcome-{number % 99}"] += 1
                calls.duration.add(number % 9973 / 7)
                if number % 5000 == 0:
                    roster.tally._statistics.calls.clear()

    ending = threading.Thread(target=end_calls)
    ending.start()
    try:
        for _ in range(100):
            assert {sample.metric for sample in read()} <= set(METRICS)
    finally:
        left.set()
        ending.join()


def test_a_scrape_and_a_message_that_arrives_do_not_collide(meters, fast_switches):
    """Celery keeps the requests in hand in a set that its event loop changes."""
    _, roster = meters
    left = threading.Event()
    kept = [SimpleRequest() for _ in range(500)]

    def receive() -> None:
        while not left.is_set():
            for request in kept:
                state.reserved_requests.add(request)
            for request in kept:
                state.reserved_requests.discard(request)

    receiving = threading.Thread(target=receive)
    receiving.start()
    try:
        for _ in range(300):
            roster.waiting()
    finally:
        left.set()
        receiving.join()
        state.reserved_requests.clear()


class SimpleRequest:
    """A delivery that has not begun."""

    lane = SimpleNamespace(name="lane")
    time_start = None


def test_a_snapshot_stays_as_it_is(meters):
    """Its histograms and counters, too."""
    _, roster = meters
    calls = roster.tally._statistics.of("lane", "task")
    calls.outcomes["succeeded"] += 1
    calls.duration.add(1.0)
    calls.rejections["max_rss"] += 1
    snapshot = roster.tally.statistics()
    taken = snapshot.to_json()
    assert taken == roster.tally._statistics.to_json()
    calls.outcomes["succeeded"] += 1
    calls.duration.add(100.0)
    calls.rejections["max_rss"] += 1
    roster.tally._statistics.of("lane", "another")
    assert snapshot.to_json() == taken


def test_task_names_are_bounded(meters):
    """Those beyond the first share one label, so that nobody floods the metrics by names."""
    read, roster = meters[0].read, meters[1]
    for number in range(MOST_TASKS + 50):
        roster.tally._statistics.of("lane", f"task-{number}").outcomes["succeeded"] += 1
    for _ in range(2):
        calls = {s.labels[1]: s.value for s in read() if s.metric == "calls"}
        assert len(calls) == MOST_TASKS + 1
        assert calls["other"] == 50


def test_counters_of_a_lane_begin_at_zero():
    """An increase from nothing to 1 is none for Prometheus, and the first kill would be missed."""
    lane = SimpleNamespace(
        name="lane",
        concurrency=16,
        budget=SimpleNamespace(rss_warning=400, max_rss=512, hard_rss=768),
    )
    samples = {
        (sample.metric, *sample.labels): sample.value
        for sample in MetricsSource(runtime_with([lane]), ("1.0", "a@h", "prefork"), list).read()
    }
    for name in (
        ("time_limits", "lane", "soft"), ("time_limits", "lane", "hard"),
        ("kills", "lane", "hard_time_limit"), ("kills", "lane", "memory_limit"),
        ("kills", "lane", "worker_lost"),
        ("rejections", "lane", "max_rss"), ("rejections", "lane", "max_worker_rss"),
    ):  # fmt: skip
        assert samples[name] == 0
    # Started with fewer slots than the lane has: celery worker -c 4.
    assert samples["lane_limit", "lane"] == 4
    assert samples["gate_state", "open"] == 1
