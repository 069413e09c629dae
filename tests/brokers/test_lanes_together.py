"""Five lanes in one worker: each within its own limit, all within the worker's, none in the way."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import time

import pytest

from tests.support.marks import first_of
from tests.support.outage import Outage
from tests.support.spans import most_at_once
from tests.support.waiting import values_of, wait_until

APP = "tests.brokers.together_app"
EACH_POOL = pytest.mark.parametrize("pool", ["prefork", "threads"])


@pytest.fixture
def together(load_app, servers, broker_url):
    """The app of the tests, on each broker in turn."""
    return load_app(APP)


def send(app, counts, seconds):
    """Send ``counts[lane]`` calls to each lane, in turns; return their results by lane."""
    sent = {lane: [] for lane in counts}
    for turn in range(max(counts.values())):
        for lane, count in counts.items():
            if turn < count:
                sent[lane].append(app.occupy.apply_async((seconds,), queue=lane))
    return sent


def spans_of(sent, running):
    """Wait for the end of all that was sent; return when the calls of each lane ran."""
    values_of([r for results in sent.values() for r in results], timeout=120, detail=running.tail)
    return {lane: [result.get() for result in results] for lane, results in sent.items()}


def state_of(app, running):
    """Return what the worker says of itself (``inspect budgets``)."""
    # By its whole name, so that its answer is not waited for longer than it takes.
    name = f"{running.name}@{socket.gethostname()}"
    answers = app.app.control.inspect(destination=[name], timeout=3)._request("budgets") or {}
    return answers.get(name)


def active_in(app, running):
    """Return how many calls run in each lane, as the worker says."""
    state = state_of(app, running)
    return {name: lane["active"] for name, lane in state["lanes"].items()} if state else None


@pytest.mark.parametrize(
    ("pool", "share"), first_of(("prefork", 5), ("prefork", 1), ("threads", 1))
)
def test_no_lane_has_more_calls_than_its_limit_and_each_has_as_many(worker, together, pool, share):
    """2,000 calls over five lanes, or a share of them: at most the limits at once, exactly."""
    running = worker(APP, "-P", pool)
    counts = {
        "tool_call": 500 // share, "file_read": 900 // share, "file_write": 300 // share,
        "critic": 200 // share, "forecast_model": 100 // share,
    }  # fmt: skip
    spans = spans_of(send(together, counts, 0.12), running)
    most = {lane: most_at_once(calls) for lane, calls in spans.items()}
    assert most == together.LIMITS
    assert most_at_once([span for calls in spans.values() for span in calls]) <= 32
    held = [
        together.until_told.apply_async(("told",), queue=lane)
        for lane, limit in together.LIMITS.items() for _ in range(limit)
    ]  # fmt: skip
    wait_until(lambda: active_in(together, running) == together.LIMITS, "all 32", timeout=60)
    together.app.backend.client.set("told", 1)
    values_of(held, timeout=30, detail=running.tail)


def test_fewer_processes_than_slots_are_shared_by_all_lanes(worker, together):
    """With -c below the sum the worker is the limit, and every lane gets on."""
    running = worker(APP, "-c", "6")
    spans = spans_of(send(together, dict.fromkeys(together.LIMITS, 30), 0.05), running)
    assert most_at_once([span for calls in spans.values() for span in calls]) == 6
    firsts = {lane: min(began for began, _ in calls) for lane, calls in spans.items()}
    ends = {lane: max(ended for _, ended in calls) for lane, calls in spans.items()}
    assert max(firsts.values()) < min(ends.values()), "a lane waited for the end of another"


@pytest.mark.slow
@EACH_POOL
def test_a_full_lane_with_10000_waiting_is_in_nobodys_way(worker, together, pool):
    """The others run as if it were empty, and the worker holds no more of it than its limit."""
    running = worker(APP, "-P", pool)
    with together.app.producer_or_acquire() as producer:
        for _ in range(10_000):
            together.until_told.apply_async(("told",), queue="forecast_model", producer=producer)
    began = time.monotonic()
    spans = spans_of(send(together, {"file_read": 160, "critic": 30}, 0.3), running)
    assert most_at_once(spans["file_read"]) == 16
    # Ten rounds of 0.3 s each; behind the full lane they would wait for ever.
    assert time.monotonic() - began < 30
    lanes = state_of(together, running)["lanes"]
    assert lanes["forecast_model"]["active"] == 1
    assert lanes["forecast_model"]["waiting"] <= 1
    together.app.control.purge()
    together.app.backend.client.set("told", 1)


@pytest.mark.slow
def test_the_calls_of_a_lane_keep_their_order(worker, together):
    """Through a full lane too: 200 calls of one slot run as they were sent."""
    running = worker(APP)
    names = [str(i) for i in range(200)]
    results = [together.note.apply_async((name,), queue="forecast_model") for name in names]
    wait_until(lambda: all(r.ready() for r in results), "all ran", timeout=60, detail=running.tail)
    ran = together.app.backend.client.lrange("ran", 0, -1)
    assert [name.decode() for name in ran] == names


@pytest.mark.slow
def test_slots_come_back_when_processes_are_killed(worker, together):
    """60 s of SIGKILLs at random: limits hold, no call is lost, and no slot leaks."""
    running = worker(APP)
    chance = random.Random(60)
    counts = {lane: limit * 160 for lane, limit in together.LIMITS.items()}
    sent = send(together, counts, 0.3)
    deadline, kills = time.monotonic() + 60, 0
    while time.monotonic() < deadline:
        victims = running.pool_pids()
        if victims:
            with contextlib.suppress(ProcessLookupError):  # it has left by itself just now
                os.kill(chance.choice(victims), signal.SIGKILL)
                kills += 1
        moment = time.monotonic() + chance.uniform(0.2, 1.0)
        wait_until(lambda moment=moment: time.monotonic() >= moment, "the next kill")
    spans = spans_of(sent, running)
    most = {lane: most_at_once(calls) for lane, calls in spans.items()}
    assert all(most[lane] <= limit for lane, limit in together.LIMITS.items()), most
    state = wait_until(
        lambda: (s := state_of(together, running)) and not any(
            lane["active"] for lane in s["lanes"].values()
        ) and s, "nothing runs", timeout=20,
    )  # fmt: skip
    assert state is not None
    again = spans_of(send(together, {n: 3 * m for n, m in together.LIMITS.items()}, 0.2), running)
    assert {lane: most_at_once(calls) for lane, calls in again.items()} == together.LIMITS
    print(f"{kills} kills, {sum(counts.values())} calls")
    assert kills > 40


@pytest.mark.slow
def test_1000_calls_at_once_on_threads_and_each_within_its_limit(worker, load_app, broker_url):
    """Five lanes whose limits add up to 1,000, all of them full at the same time."""
    limits = {
        "tool_call": 250,
        "file_read": 500,
        "file_write": 125,
        "critic": 100,
        "forecast_model": 25,
    }
    environment = {"LIMITS": json.dumps(limits)}
    together = load_app(APP, **environment)
    running = worker(APP, "-P", "threads", env=environment)
    sent = {
        lane: [together.until_told.apply_async(("go",), queue=lane) for _ in range(limit + 10)]
        for lane, limit in limits.items()
    }
    try:
        wait_until(
            lambda: active_in(together, running) == limits, "1,000 run", timeout=60,
            detail=running.tail,
        )  # fmt: skip
    finally:
        together.app.backend.client.set("go", 1)
    values_of([r for results in sent.values() for r in results], timeout=60, detail=running.tail)


@pytest.mark.slow
def test_a_reconnect_keeps_the_limits(worker, together, servers):
    """Calls that run on through an outage keep their slots, and none is run twice."""
    outage = Outage(servers.broker)
    running = worker(APP, env={"CELERY_BROKER_URL": outage.url, "VISIBLE": "20"})
    sent = send(together, {lane: limit * 4 for lane, limit in together.LIMITS.items()}, 3)
    # With every lane full nothing is on its way: kombu can lose what Redis has handed out (BRPOP)
    # and the connection has not delivered.
    wait_until(
        lambda: active_in(together, running) == together.LIMITS, "every lane is full",
        timeout=20, detail=running.tail,
    )  # fmt: skip
    outage.begin()
    running.wait_for_log("Cannot connect to", timeout=20)
    outage.end()
    spans = spans_of(sent, running)
    most = {lane: most_at_once(calls) for lane, calls in spans.items()}
    assert all(most[lane] <= limit for lane, limit in together.LIMITS.items()), most


@pytest.mark.slow
def test_a_warm_stop_leaves_what_waits_for_a_slot_to_the_next_worker(worker, together):
    """Late acknowledged and early: what runs ends, the rest is there for others, each runs once."""
    first = worker(APP)
    sent = [
        together.count.apply_async((f"{lane}{number}",), queue=lane)
        for number in range(12)
        for lane in ("file_write", "critic")
    ]
    runs = together.app.backend.client
    wait_until(lambda: runs.hlen("runs") >= 7, "both lanes are full", detail=first.tail)
    assert first.stop() == 0
    assert not all(result.ready() for result in sent)
    second = worker(APP)
    wait_until(lambda: all(r.ready() for r in sent), "all end", timeout=30, detail=second.tail)
    assert set(runs.hvals("runs")) == {b"1"}
    assert runs.hlen("runs") == 24


def test_calls_that_are_kept_get_their_turn_on_gevent(worker, together):
    """A greenlet that ends has its place in the pool still: nothing may be started from it.

    And what has ended makes room at once, not when Celery's loop comes by, which is every 2 s.
    """
    running = worker(APP, "-P", "gevent", "-Q", "file_write,forecast_model")
    spans = spans_of(send(together, {"file_write": 30, "forecast_model": 10}, 0.05), running)
    assert most_at_once(spans["file_write"]) <= 4
    assert most_at_once(spans["forecast_model"]) == 1
    began = [began for calls in spans.values() for began, _ in calls]
    assert max(began) - min(began) < 9  # ten rounds


def test_calls_with_an_eta_do_not_block_their_lane(worker, together):
    """More of them than the lane has slots wait in the worker, and others of the lane run."""
    running = worker(APP)
    later = [
        together.occupy.apply_async((0.01,), queue="forecast_model", countdown=3600)
        for _ in range(20)
    ]
    soon = [
        together.occupy.apply_async((0.05,), queue="forecast_model", countdown=2) for _ in range(5)
    ]
    now = [together.occupy.apply_async((0.01,), queue="forecast_model") for _ in range(20)]
    spans = spans_of({"forecast_model": [*now, *soon]}, running)
    assert most_at_once(spans["forecast_model"]) == 1
    assert not any(result.ready() for result in later)


@pytest.mark.slow
def test_idle_slots_are_borrowed_and_given_back(worker, load_app, broker_url):
    """Critic runs on file_read's slots while they are idle; file_read has its minimum at once."""
    environment = {"SHARING": json.dumps({"critic": [3, 12], "file_read": [10, None]})}
    together = load_app(APP, **environment)
    running = worker(APP, env=environment)
    # A lane lends only to one whose calls are known to be short.
    spans_of(send(together, {"critic": 3}, 0.01), running)
    sent = send(together, {"critic": 150}, 0.4)
    lanes = wait_until(
        lambda: (s := state_of(together, running)) and s["lanes"]["critic"]["active"] > 3 and s,
        "slots are borrowed", timeout=20, detail=running.tail,
    )  # fmt: skip
    assert lanes is not None
    sent |= send(together, {"file_read": 160}, 0.5)
    spans = spans_of(sent, running)
    # Six of file_read's 16 may be lent, and no lane else lends any.
    assert most_at_once(spans["critic"]) == 9
    assert most_at_once(spans["file_read"]) == 16
    assert most_at_once([span for calls in spans.values() for span in calls]) <= 32


@pytest.mark.slow
def test_long_lanes_are_lent_nothing(worker, load_app, redis_url):
    """A borrowed slot comes back when its call ends: nothing is lent to calls of unknown length."""
    environment = {"SHARING": json.dumps({"critic": [3, 12], "file_read": [0, None]})}
    together = load_app(APP, **environment)
    running = worker(APP, env=environment)
    spans = spans_of(send(together, {"critic": 9}, 1.0), running)
    assert most_at_once(spans["critic"]) == 3


@pytest.mark.slow
def test_calls_with_an_eta_do_not_block_a_lane_that_has_a_worker_alone(worker, together):
    """There Celery's own consumer does, except where the count cannot be changed."""
    running = worker(APP, "-Q", "critic", "-c", "3")
    later = [
        together.occupy.apply_async((0.01,), queue="critic", countdown=3600) for _ in range(11)
    ]
    soon = together.occupy.apply_async((0.01,), queue="critic", countdown=2)
    now = [together.occupy.apply_async((0.01,), queue="critic") for _ in range(12)]
    spans = spans_of({"critic": [*now, soon]}, running)
    assert most_at_once(spans["critic"]) <= 3
    assert not any(result.ready() for result in later)
