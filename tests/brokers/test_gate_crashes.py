"""The gate when its worker ends or loses its broker: whatever it held is still there."""

from __future__ import annotations

import random
import signal
import time

import pytest
from kombu import Connection

from tests.brokers.gate import APP, FAT, FAT_CALL, close_gate, gate_of, open_gate, waiting_in
from tests.support.outage import Outage
from tests.support.waiting import values_of, wait_until
from tests.worker.test_memory_calls import calls_of, runs_of

pytestmark = pytest.mark.slow


@pytest.fixture
def app(load_app, servers, broker_url):
    """The app of the tests, on each broker in turn."""
    return load_app(APP)


def give_back_what_the_dead_held(app):
    """Do at once what a Redis worker does after the visibility timeout (RabbitMQ: by itself)."""
    url = app.app.conf.broker_url
    if url.startswith("redis"):
        options = {"visibility_timeout": 0}
        with Connection(url, transport_options=options) as broker, broker.channel() as channel:
            channel.qos.restore_visible(num=1000, interval=1)


def test_a_worker_killed_around_pause_and_resume_loses_nothing(worker, app):
    """20 SIGKILLs at random moments of a flapping gate; every call has its result at the end."""
    chance = random.Random(20)
    environment = {"MAX_WORKER_RSS": FAT}
    results, changes = [], 0
    for _ in range(10):
        pair = [worker(APP, "-Q", "lane,roomy", "-c", "2", env=environment) for _ in range(2)]
        for _ in range(2):
            app.flap.delay(FAT_CALL, 10)
        results += [app.short.delay(0.5) for _ in range(6)]
        for running in sorted(pair, key=lambda _: chance.random()):
            moment = time.monotonic() + chance.uniform(0.1, 1.3)
            wait_until(lambda moment=moment: time.monotonic() >= moment, "the moment to kill")
            changes += running.log.count("budgets.gate_")
            running.kill()
    give_back_what_the_dead_held(app)
    last = worker(APP, "-Q", "lane", "-c", "2")
    assert all(result.get(timeout=60) for result in results), last.tail()
    print(f"20 kills around {changes} changes of the gate; {len(results)} calls, none lost")
    assert changes >= 5
    wait_until(lambda: waiting_in(app, "lane") == 0, "an empty queue")


@pytest.mark.parametrize("how", ["warm", "soft", "cold"])
def test_a_shutdown_with_the_gate_closed_loses_nothing(worker, app, broker_url, how):
    """What was handed back or never taken runs on the next worker, each once."""
    environment = {"MAX_WORKER_RSS": FAT, "SOFT_SHUTDOWN": "1" if how == "soft" else "0"}
    running = worker(APP, "-Q", "early,roomy", "-c", "2", env=environment)
    close_gate(app, running)
    results = [app.quick_early.delay(i) for i in range(10)]
    # Celery's handler of SIGQUIT itself reads from RabbitMQ (apps.worker.on_cold_shutdown). Within
    # the answer to a pause that mixes up what is read, and the worker then waits for ever.
    running.wait_for_log("Canceling queue early")
    wait_until(lambda: gate_of(app, running), "the pause is over", detail=running.tail)
    if how == "warm":
        app.redis().set("release:hog", 1)
    running.process.send_signal(signal.SIGTERM if how == "warm" else signal.SIGQUIT)
    running.wait_exit(timeout=30)
    worker(APP, "-Q", "early", "-c", "2")
    assert [result.get(timeout=20) for result in results] == list(range(10)), running.tail()
    assert [runs_of(app, result) for result in results] == [1] * 10


def test_a_paused_queue_stays_paused_through_a_reconnect(worker, app, servers, broker_url):
    """The broker goes and comes; nothing starts until the memory is back, and then all does."""
    outage = Outage(servers.broker)
    environment = {"MAX_WORKER_RSS": FAT, "CELERY_BROKER_URL": outage.url}
    running = worker(APP, "-Q", "lane,roomy", "-c", "2", env=environment)
    hog = close_gate(app, running)
    results = [app.quick.delay(i) for i in range(10)]
    outage.begin()
    running.wait_for_log("Cannot connect to", timeout=20)
    outage.end()
    wait_until(
        lambda: running.log.count("Connected to") >= 2, "a new connection", timeout=20,
        detail=running.tail,
    )  # fmt: skip
    state = wait_until(lambda: gate_of(app, running), "an answer", timeout=20)
    assert state["state"] == "paused"
    # What the new connection has fetched before it was paused goes back at once.
    wait_until(lambda: waiting_in(app, "lane") == 10, "ten wait", detail=running.tail)
    open_gate(app, running, hog)
    wait_until(lambda: all(r.ready() for r in results), "ten", timeout=20, detail=running.tail)
    assert [result.get() for result in results] == list(range(10))
    assert [runs_of(app, result) for result in results] == [1] * 10


def test_a_thousand_calls_under_a_flapping_gate(worker, app, broker_url):
    """Closed and open in turns of a second: every call is done, each once."""
    running = worker(APP, "-Q", "lane,roomy", "-c", "2", env={"MAX_WORKER_RSS": FAT})
    app.flap.delay(FAT_CALL, 7)
    running.wait_for_log("budgets.gate_closed", timeout=20)
    results = [app.short.delay(0.001) for _ in range(1000)]
    assert all(values_of(results, timeout=60, detail=running.tail))
    assert [runs_of(app, result) for result in results] == [1] * 1000
    assert dict(calls_of(app, "short", 1000).outcomes) == {"succeeded": 1000}
    closed = running.log.count("budgets.gate_closed")
    print(f"the gate closed {closed} times")
    assert closed >= 2, running.tail()


@pytest.mark.rabbitmq
def test_a_quorum_queue_loses_nothing_under_a_flapping_gate(
    worker, load_app, servers, rabbitmq_url
):
    """With a delivery limit: what was prefetched is held, and handed back at most once."""
    app = load_app(APP, QUORUM="1")
    environment = {"MAX_WORKER_RSS": FAT, "QUORUM": "1"}
    running = worker(APP, "-Q", "quorum,roomy", "-c", "3", env=environment)
    try:
        app.flap.delay(FAT_CALL, 5)
        results = [app.short_quorum.delay(0.1) for _ in range(60)]
        assert all(values_of(results, timeout=60, detail=running.tail))
        assert [runs_of(app, result) for result in results] == [1] * 60
        assert "budgets.gate_closed" in running.log
    finally:
        running.kill()
        with Connection(rabbitmq_url) as connection, connection.channel() as channel:
            channel.queue_delete("quorum")
