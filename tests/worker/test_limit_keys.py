"""Tasks with limits by key, on real workers: a key that is full holds up nobody else."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from tests.support.connections import cut_connections
from tests.support.marks import first_of
from tests.support.spans import most_at_once
from tests.support.waiting import values_of, wait_until

APP = "tests.worker.fleet_app"
ASIDES = "celery-budgets:{limits}:asides"
POOLS = pytest.mark.parametrize("pool", first_of("prefork", "threads", "gevent", "solo"))


def names(spans):
    return [name for *_, name in spans]


@POOLS
def test_a_full_key_holds_up_no_other(worker, load_app, broker_url, pool):
    """It waits aside, in its order; calls of other keys and of none go on beside."""
    app = load_app(APP)
    for _ in range(2):
        running = worker(APP, "-Q", "free", "-P", pool)
    noisy = [app.of_tenant.delay("noisy", f"{n:02}", 0.2) for n in range(20)]
    wait_until(lambda: app.ran("tenant:noisy"), "the first has run", detail=running.tail)
    others = [app.of_tenant.delay(tenant, str(n), 0.0) for n in range(2) for tenant in "abc"]
    others += [app.free.delay(str(n)) for n in range(4)]
    values_of(others, timeout=30, detail=running.tail)
    assert len(app.ran("tenant:noisy")) < 20, "its calls have been waiting meanwhile"
    values_of(noisy, timeout=60, detail=running.tail)
    spans = app.ran("tenant:noisy")
    assert sorted(names(spans)) == [f"{n:02}" for n in range(20)]
    assert most_at_once(spans) == 1
    for tenant in "abc":
        assert sorted(names(app.ran(f"tenant:{tenant}"))) == ["0", "1"]
    wait_until(lambda: app.redis().hlen(ASIDES) == 0, "nothing is left aside")


def test_what_waits_aside_comes_back_whoever_has_put_it_there(worker, load_app, broker_url):
    """In its order, after all workers were killed: by one that has never seen it."""
    app = load_app(APP, VISIBILITY="2")
    first = worker(APP, "-Q", "free", env={"VISIBILITY": "2"})
    app.of_tenant.delay("a", "long", 8)
    wait_until(lambda: app.redis().scard("running:tenant:a"), "it runs", detail=first.tail)
    results = [app.of_tenant.delay("a", f"{n}", 0.0) for n in range(6)]
    wait_until(lambda: app.redis().hlen(ASIDES) == 6, "all wait aside", detail=first.tail)
    # Of what it has acknowledged, the broker has heard.
    app.free.delay("beside").get(timeout=20)
    first.kill()
    second = worker(APP, "-Q", "free", env={"VISIBILITY": "2"})
    values_of(results, timeout=60, detail=second.tail)
    assert names(app.ran("tenant:a"))[:6] == [f"{n}" for n in range(6)]


def test_why_tells_of_a_call_that_waits_aside(worker, load_app, broker_url):
    app = load_app(APP)
    running = worker(APP, "-Q", "free")
    app.of_tenant.delay("a", "long", 5)
    wait_until(lambda: app.redis().scard("running:tenant:a"), "it runs", detail=running.tail)
    results = [app.of_tenant.delay("a", f"{n}", 0.0) for n in range(4)]
    wait_until(lambda: app.redis().hlen(ASIDES) == 4, "all wait aside", detail=running.tail)
    told = [app.budgets.why(result.id, timeout=0.5) for result in results]
    assert [(why.cause, why.limit, why.lane, why.certain) for why in told] == [
        ("limit", "tenant", "free", True)
    ] * 4
    assert sorted(why.position for why in told) == [0, 1, 2, 3]
    assert all(0 < time.time() - why.since < 5 for why in told)
    assert "aside, in Redis, with key 'a'" in str(told[0])
    values_of(results, timeout=30, detail=running.tail)
    assert app.budgets.why(results[0].id, timeout=0.5).cause == "ended"


@pytest.mark.parametrize("pool", first_of("prefork", "threads", "gevent"))
def test_a_worker_has_no_more_of_others_in_a_flood(worker, load_app, broker_url, pool):
    """It puts the flood aside soon; of what is behind that, another worker runs a part."""
    app = load_app(APP)
    running = worker(APP, "-Q", "free", "-P", pool)
    flood = [app.of_tenant.delay("noisy", f"{n:03}", 0.0 if n else 9.0) for n in range(100)]
    quiet = [app.of_tenant.delay(f"quiet{n}", "it", 3.0) for n in range(12)]
    wait_until(lambda: app.redis().hlen(ASIDES) > 90, "it is aside", timeout=30)
    for _ in range(2):
        worker(APP, "-Q", "free", "-P", pool)
    values_of(quiet, timeout=40, detail=running.tail)
    kept = [one for one in quiet if f"[{one.id}] succeeded" in running.log]
    assert len(kept) < len(quiet), running.tail()
    values_of(flood, timeout=60, detail=running.tail)
    spans = app.ran("tenant:noisy")
    assert sorted(names(spans)) == [f"{n:03}" for n in range(100)]
    assert most_at_once(spans) == 1
    wait_until(lambda: app.redis().hlen(ASIDES) == 0, "nothing is left aside")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6])
def test_a_lost_connection_in_the_middle_of_a_flood(worker, load_app, broker_url, seconds):
    """Of both workers: nothing is lost, and the limit holds."""
    app = load_app(APP, VISIBILITY="5")
    for _ in range(2):
        running = worker(APP, "-Q", "free", env={"VISIBILITY": "5"})
    flood = [app.of_tenant.delay("noisy", f"{n:03}", 0.0 if n else 3.0) for n in range(300)]
    quiet = [app.of_tenant.delay(f"quiet{n}", "it", 0.1) for n in range(30)]
    ends = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= ends, "the moment", interval=0.001)
    cut_connections(broker_url)
    values_of(quiet + flood, timeout=120, detail=running.tail)
    assert set(names(app.ran("tenant:noisy"))) == {f"{n:03}" for n in range(300)}
    assert most_at_once(app.ran("tenant:noisy")) == 1
    wait_until(lambda: app.redis().hlen(ASIDES) == 0, "nothing is left aside", timeout=30)


@pytest.mark.slow
def test_a_worker_that_stops_leaves_what_waits_aside_to_others(worker, load_app, broker_url):
    """Nothing is lost, and nothing runs twice, while workers come and go."""
    app = load_app(APP)
    running = [worker(APP, "-Q", "free") for _ in range(2)]
    results = [app.of_tenant.delay(f"{n % 3}", f"{n}", 0.2) for n in range(90)]

    def done():
        return sum(len(app.ran(f"tenant:{tenant}")) for tenant in range(3))

    for _ in range(3):
        # A slow machine takes longer for a start and a stop than for all of the calls.
        go_on = min(done() + 1, len(results))
        wait_until(lambda: done() >= go_on, "they go on", timeout=30)  # noqa: B023
        running.append(worker(APP, "-Q", "free"))
        running.pop(0).stop()
    values_of(results, timeout=60, detail=running[0].tail)
    for tenant in range(3):
        spans = app.ran(f"tenant:{tenant}")
        assert sorted(map(int, names(spans))) == list(range(tenant, 90, 3))
        assert most_at_once(spans) == 1


def test_a_rate_holds_for_each_key(worker, load_app, broker_url):
    """Also while nothing else happens: who waits aside comes when the rate lets it."""
    app = load_app(APP)
    running = worker(APP, "-Q", "free")
    results = [app.paced.delay(tenant, f"{n}") for n in range(6) for tenant in "ab"]
    values_of(results, timeout=30, detail=running.tail)
    for tenant in "ab":
        begun = [began for began, *_ in app.ran(f"paced:{tenant}")]
        assert names(app.ran(f"paced:{tenant}")) == [f"{n}" for n in range(6)]
        assert 0.9 < begun[-1] - begun[0] < 3  # 5 times 0.2 s
        assert all(late - early > 0.1 for early, late in pairwise(begun))


def test_key_and_weight_go_along(worker, load_app, broker_url):
    """Those that the sender gives: aside, with a retry, and with a redelivery."""
    app = load_app(APP)
    running = worker(APP, "-Q", "free")
    app.of_tenant.delay("b", "before", 1.0)
    wait_until(lambda: app.redis().scard("running:tenant:b"), "it runs", detail=running.tail)
    sent = app.comes_again.apply_async(("a", "it"), weight={"four": 3}, limit_keys={"tenant": "b"})
    wait_until(lambda: app.redis().hlen(ASIDES) == 1, "it waits aside", detail=running.tail)
    sent.get(timeout=30)
    assert app.redis().lrange("held:it", 0, -1) == [b"3 tenant:b"] * 3


def test_a_sender_names_the_key(worker, load_app):
    """By name, without the task; a call without one is told of once."""
    app = load_app(APP)
    running = worker(APP, "-Q", "free")
    send = app.app.send_task
    task, kwargs = app.of_tenant.name, {"name": "x", "tenant": None, "seconds": 0.0}
    results = [send(task, kwargs=kwargs, queue="free") for _ in range(3)]
    running.wait_for_log("budgets.limit_key_missing", "limit=tenant", timeout=20)
    keyed = send(task, ("a", "0", 1.0), queue="free", limit_keys={"tenant": "b"})
    held = "celery-budgets:{limits}:held:tenant:b"
    wait_until(lambda: app.redis().exists(held), "it holds the key that it was sent with")
    values_of([*results, keyed], timeout=20, detail=running.tail)
    assert running.log.count("budgets.limit_key_missing") == 1
