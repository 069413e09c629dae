"""A gate that would stay closed: processes are replaced, the worker leaves, or one goes through."""

from __future__ import annotations

import pytest

from celery_budgets.units import MIB
from celery_budgets.worker.memory.replacement import EXIT_CODE
from tests.brokers.gate import gate_of
from tests.support.marks import first_of
from tests.support.waiting import wait_until
from tests.worker.memory_app import MAX_RSS

APP = "tests.worker.memory_app"


def test_processes_that_hold_the_memory_are_replaced(worker, load_app):
    """Each is below max_rss, together they are above max_worker_rss, and nothing runs."""
    app = load_app(APP)
    environment = {"MAX_WORKER_RSS": str(300 * MIB), "MAX_PAUSE": "1.5"}
    running = worker(APP, "-Q", "lane", "-c", "3", env=environment)
    before = set(running.pool_pids())
    for _ in range(6):
        app.fill.delay(110 * MIB)
    running.wait_for_log("budgets.gate_closed", "by=max_worker_rss", timeout=20)
    running.wait_for_log("budgets.processes_replaced", timeout=20)
    running.wait_for_log("budgets.gate_opened", timeout=20)
    assert app.quick.delay("again").get(timeout=30) == "again", running.tail()
    assert not before & set(running.pool_pids())
    assert gate_of(app, running)["state"] == "open"


@pytest.mark.parametrize("pool", first_of("threads", "gevent", "solo"))
def test_a_worker_that_shares_its_process_leaves_for_its_supervisor(worker, load_app, pool):
    """Above max_rss with nothing running for max_pause: it exits with its documented code."""
    app = load_app(APP)
    running = worker(APP, "-Q", "lane", "-P", pool, "-c", "1", env={"MAX_PAUSE": "1.5"})
    assert app.keep.delay(MAX_RSS).get(timeout=20)
    running.wait_for_log("budgets.gate_closed", "by=max_rss", timeout=20)
    waiting = app.quick.delay("left")
    assert running.wait_exit(timeout=30) == EXIT_CODE
    worker(APP, "-Q", "lane", "-P", pool, "-c", "1")
    assert waiting.get(timeout=20) == "left", running.tail()


@pytest.mark.slow
def test_a_call_that_waits_for_a_thread_goes_back_to_the_broker(worker, load_app):
    """Acknowledged early and prefetched, but not started when the gate closed."""
    app = load_app(APP)
    running = worker(APP, "-Q", "early", "-P", "threads", "-c", "1")
    hog = app.hold.apply_async((250 * MIB, "thread"), queue="early")
    waiting = app.quick_early.delay("later")
    running.wait_for_log("budgets.gate_closed", "by=max_rss", timeout=20)
    app.redis().set("release:thread", 1)
    assert hog.get(timeout=20)
    assert waiting.get(timeout=20) == "later", running.tail()
    running.wait_for_log("budgets.handed_back", waiting.id)
    assert int(app.redis().get(f"runs:{waiting.id}")) == 1


@pytest.mark.slow
def test_a_limit_below_the_worker_itself_lets_one_call_through_at_a_time(worker, load_app):
    """Nothing runs and nothing can be replaced: slow, loud, and not dead."""
    app = load_app(APP)
    environment = {"MAX_WORKER_RSS": str(20 * MIB), "MAX_PAUSE": "1"}
    running = worker(APP, "-Q", "lane", "-c", "2", env=environment)
    running.wait_for_log("budgets.gate_closed", timeout=20)
    results = [app.quick.delay(i) for i in range(3)]
    assert [result.get(timeout=40) for result in results] == [0, 1, 2], running.tail()
    running.wait_for_log("budgets.gate_lets_one_through")


def test_the_worker_says_what_its_gate_does(worker, load_app):
    """`inspect budgets` has the state, since when, and the numbers."""
    app = load_app(APP)
    running = worker(APP, "-Q", "lane", "-c", "1", env={"MAX_WORKER_RSS": str(300 * MIB)})
    gate = wait_until(
        lambda: (state := gate_of(app, running)) and state["gauges"] and state, "a first look"
    )
    assert gate["state"] == "open"
    gauge = gate["gauges"]["max_worker_rss"]
    assert 0 < gauge["used"] <= gauge["resume"] < gauge["limit"] == 300 * MIB
