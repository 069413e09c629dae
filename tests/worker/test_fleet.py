"""Lanes with a limit over all workers, on real workers that come, go, die and stand still."""

from __future__ import annotations

import os
import signal
from itertools import pairwise

import pytest

from tests.support.marks import first_of
from tests.support.spans import most_at_once
from tests.support.waiting import wait_until

APP = "tests.worker.fleet_app"
POOLS = pytest.mark.parametrize("pool", first_of("prefork", "threads", "gevent", "solo"))


@POOLS
def test_two_workers_run_no_more_than_the_fleet_may(worker, load_app, broker_url, pool):
    """Of each lane; all calls run, and a lane without a limit runs on beside."""
    for _ in range(2):
        worker(APP, "-Q", "free,shared,one", "-P", pool)
    app = load_app(APP)
    results = [task.delay(str(n)) for n in range(12) for task in (app.shared, app.one)]
    beside = [app.free.delay(str(n)) for n in range(4)]
    assert [result.get(timeout=30) for result in beside] == [str(n) for n in range(4)]
    for result in results:
        result.get(timeout=60)
    assert len(app.ran("shared")) == len(app.ran("one")) == 12
    assert most_at_once(app.ran("shared")) <= 2
    assert most_at_once(app.ran("one")) == 1


@pytest.mark.slow
def test_a_killed_worker_loses_no_call_and_its_places_are_free_after_a_lease(
    worker, load_app, broker_url
):
    """Nothing runs twice at once meanwhile; who waits hears of it by itself."""
    first = worker(APP, "-Q", "shared", env={"VISIBILITY": "2"})
    app = load_app(APP, VISIBILITY="2")
    results = [app.shared.delay(str(n), 1.0) for n in range(2)]
    wait_until(lambda: app.redis().scard("running:shared") == 2, "both run")
    second = worker(APP, "-Q", "shared", env={"VISIBILITY": "2"})
    results += [app.shared.delay(f"later {n}", 0.1) for n in range(4)]
    first.kill()
    killed_at = app.now()
    for result in results:
        result.get(timeout=60)
    spans = app.ran("shared")
    assert {name for *_, name in spans} == {"0", "1", *(f"later {n}" for n in range(4))}
    assert most_at_once(spans) <= 2
    assert min(began for began, *_ in spans) - killed_at < 3 + 2, second.tail()


@pytest.mark.slow
@pytest.mark.parametrize("pool", first_of("prefork", "threads"))
def test_a_worker_that_stood_still_ends_what_runs_where_others_have_begun(worker, load_app, pool):
    """After more than a lease; it says so. Less than that changes nothing."""
    first = worker(APP, "-Q", "one", "-P", pool)
    app = load_app(APP)
    runs = app.one.delay("stands still", 40)
    wait_until(lambda: app.redis().sismember("running:one", "stands still"), "it runs")
    second = worker(APP, "-Q", "one", "-P", pool)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        # It may have taken one from the broker that it cannot read.
        others = [app.one.delay(f"other {n}", 30) for n in range(3)]
        taken = "its place is taken"
        wait_until(lambda: app.redis().scard("running:one") == 2, taken, timeout=20)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    first.wait_for_log("budgets.lease_lost")
    with pytest.raises(Exception, match="TimeLimitExceeded"):
        runs.get(timeout=20)
    assert not [other for other in others if other.state == "FAILURE"]
    first.kill()
    second.kill()


def test_a_place_that_is_free_is_taken_by_another_worker_at_once(worker, load_app, broker_url):
    """Not only when it looks again: the whole takes little longer than the bodies."""
    for _ in range(2):
        worker(APP, "-Q", "one")
    app = load_app(APP)
    results = [app.one.delay(str(n), 0.05) for n in range(40)]
    for result in results:
        result.get(timeout=60)
    spans = app.ran("one")
    assert most_at_once(spans) == 1
    gaps = sorted(after[0] - before[1] for before, after in pairwise(spans))
    assert gaps[int(len(gaps) * 0.95)] < 0.5


def test_tasks_are_held_to_the_limits_that_they_name(worker, load_app, broker_url):
    """Over two workers; a task of the same lane without limits does not wait for them."""
    for _ in range(2):
        worker(APP, "-Q", "free")
    app = load_app(APP)
    results = [task.delay(str(n)) for n in range(6) for task in (app.api, app.slowly)]
    beside = [app.free.delay(str(n)) for n in range(2)]
    results.append(app.api.map(["in a map"]).delay())
    for result in [*beside, *results]:
        result.get(timeout=60)
    assert len(app.ran("api")) == 7
    assert most_at_once(app.ran("api")) == 1
    begun = [began for began, *_ in app.ran("slowly")]
    assert begun[-1] - begun[0] > 0.9  # 5 times 0.2 s, less the start of the first


def test_a_call_of_weight_counts_as_many(worker, load_app, broker_url):
    """That of the task, or of the sender; it survives a retry and a chain."""
    for _ in range(2):
        worker(APP, "-Q", "free")
    app = load_app(APP)
    results = [app.heavy.delay(str(n)) for n in range(6)]
    for result in results:
        result.get(timeout=60)
    assert most_at_once(app.ran("heavy")) == 2
    results = [app.heavy.apply_async((f"4 {n}",), weight=4) for n in range(3)]
    results += [app.heavy.s("4 in a chain").set(weight=4).apply_async()]
    for result in results:
        result.get(timeout=60)
    assert most_at_once([span for span in app.ran("heavy") if span[2].startswith("4 ")]) == 1
