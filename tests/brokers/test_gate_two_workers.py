"""The gate on real brokers: a worker that is above its limit, and one beside it that is not."""

from __future__ import annotations

import psutil
import pytest

from celery_budgets import RejectedByBudget
from celery_budgets.units import MIB
from tests.brokers.gate import APP, FAT, close_gate, gate_of, open_gate, waiting_in
from tests.support.waiting import wait_until
from tests.worker.test_memory_calls import calls_of, runs_of


@pytest.fixture
def app(load_app, servers, broker_url):
    """The app of the tests, on each broker in turn."""
    return load_app(APP)


@pytest.mark.slow
def test_a_closed_gate_leaves_everything_to_its_neighbour(worker, app, broker_url):
    """500 messages, two workers: the paused one starts none; after release both work."""
    paused = worker(APP, "-Q", "lane,roomy", "-c", "2", env={"MAX_WORKER_RSS": FAT})
    hog = close_gate(app, paused)
    other = worker(APP, "-Q", "lane", "-c", "2")
    own = {*paused.pool_pids()}
    results = [app.short.delay(0.005) for _ in range(500)]
    seen = []

    def all_done():
        # Waiting or in hand, the calls add up at every look.
        done = sum(result.ready() for result in results[::50])
        seen.append(waiting_in(app, "lane"))
        return done == len(results[::50]) and all(result.ready() for result in results)

    wait_until(all_done, "500 calls", timeout=60, interval=0.1, detail=other.tail)
    pids = {result.get() for result in results}
    assert not pids & own, paused.tail()
    assert pids <= set(other.pool_pids())
    assert [runs_of(app, result) for result in results] == [1] * 500
    assert seen == sorted(seen, reverse=True)  # nothing went round in circles
    assert gate_of(app, paused)["state"] == "paused"
    assert gate_of(app, other)["state"] == "open"
    open_gate(app, paused, hog)
    # Two slots each and 0.1 s per call: one worker alone cannot take all of these.
    later = [app.short.delay(0.1) for _ in range(40)]
    both = {result.get(timeout=30) for result in later}
    assert both & set(paused.pool_pids()), paused.tail()
    assert both & set(other.pool_pids())
    assert paused.log.count("budgets.gate_closed") == paused.log.count("budgets.gate_opened") == 1


@pytest.mark.slow
def test_early_acknowledged_calls_survive_a_closing_gate(worker, app, broker_url):
    """What was prefetched and not started goes back; nothing is lost and nothing runs twice."""
    running = worker(APP, "-Q", "early,roomy", "-c", "2", env={"MAX_WORKER_RSS": FAT})
    hog = app.hold.delay(300 * MIB, "early")
    results = [app.short_early.delay(0.3) for _ in range(20)]
    running.wait_for_log("budgets.gate_closed", "by=max_worker_rss", timeout=20)
    wait_until(lambda: waiting_in(app, "early") > 0, "calls wait", timeout=5)
    open_gate(app, running, hog, key="early")
    assert all(result.get(timeout=60) for result in results)
    assert [runs_of(app, result) for result in results] == [1] * 20, running.tail()
    assert dict(calls_of(app, "short_early", 20).outcomes) == {"succeeded": 20}


def test_a_rejected_call_fails_at_once(worker, app, broker_url):
    """budgets_rejection="fail": the caller gets the reason and the lane, and nothing runs."""
    environment = {"MAX_WORKER_RSS": FAT, "REJECTION": "fail"}
    running = worker(APP, "-Q", "lane,roomy", "-c", "2", env=environment)
    hog = close_gate(app, running)
    result = app.quick.delay(1)
    with pytest.raises(RejectedByBudget) as caught:
        result.get(timeout=10)
    assert (caught.value.reason, caught.value.lane) == ("max_worker_rss", "lane")
    assert runs_of(app, result) == 0
    calls = calls_of(app, "quick")
    assert dict(calls.outcomes) == {"rejected": 1}
    assert dict(calls.rejections) == {"max_worker_rss": 1}
    open_gate(app, running, hog)
    assert app.quick.delay(2).get(timeout=20) == 2


@pytest.mark.slow
def test_a_paused_worker_costs_nothing(worker, app):
    """Under 1 % of a core, with messages waiting."""
    running = worker(APP, "-Q", "lane,roomy", "-c", "2", env={"MAX_WORKER_RSS": FAT})
    hog = close_gate(app, running)
    results = [app.quick.delay(i) for i in range(20)]
    process = psutil.Process(running.pid)
    busy = sum(process.cpu_times()[:2])
    began = wait_until(lambda: app.redis().time()[0], "a start")
    wait_until(lambda: app.redis().time()[0] - began >= 8, "8 s", timeout=15, interval=0.5)
    share = (sum(process.cpu_times()[:2]) - busy) / 8
    print(f"a paused worker uses {share:.2%} of a core")
    assert share < 0.01
    open_gate(app, running, hog)
    assert [result.get(timeout=20) for result in results] == list(range(20))
