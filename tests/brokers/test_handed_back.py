"""What a worker on Redis has taken and not started: back at the head of its queue, in its order."""

from __future__ import annotations

import json
import signal

import pytest

from tests.support.marks import first_of
from tests.support.outage import Outage
from tests.support.waiting import wait_until
from tests.support.workers import Servers

APP = "tests.brokers.together_app"
#: One runs and three wait for it.
ONE_LANE = {
    "LIMITS": '{"lane": 1}', "PREFETCH": "4", "CELERY_BUDGETS_REDIS_TRANSPORT": "budgets",
}  # fmt: skip


@pytest.fixture
def app(load_app):
    return load_app(APP, LIMITS='{"lane": 1}')


def send(app, names):
    """Send a call that runs until it is told, and behind it one for each of *names*."""
    first = app.until_told.delay("go on")
    return first, [app.note.delay(name) for name in names]


def ids(app):
    """The calls that wait at the broker, the next one first."""
    texts = app.app.backend.client.lrange("lane", 0, -1)
    return [json.loads(text)["headers"]["id"] for text in reversed(texts)]


def in_hand(app):
    return app.app.backend.client.hlen("unacked")


POOLS = ("prefork", "threads", "gevent")


@pytest.mark.parametrize("pool", first_of(*POOLS))
def test_a_warm_stop_hands_back_at_once(worker, app, pool):
    """While what runs still runs: that may take long."""
    running = worker(APP, "-P", pool, env=ONE_LANE)
    first, others = send(app, "abcde")
    wait_until(lambda: in_hand(app) == 4, "one runs and three wait")
    running.wait_active()
    running.process.terminate()
    wait_until(lambda: ids(app) == [one.id for one in others], "they are back", detail=running.tail)
    assert in_hand(app) == 1
    app.app.backend.client.set("go on", 1)
    assert running.wait_exit() == 0
    assert first.get(timeout=5) is None
    assert in_hand(app) == 0
    worker(APP, env=ONE_LANE)
    wait_until(lambda: app.app.backend.client.llen("ran") == 5, "all run")
    assert app.app.backend.client.lrange("ran", 0, -1) == [b"a", b"b", b"c", b"d", b"e"]


def test_a_cold_stop_hands_back_what_ran_too(worker, app):
    running = worker(APP, env=ONE_LANE)
    first, others = send(app, "abcde")
    wait_until(lambda: in_hand(app) == 4, "one runs and three wait")
    running.wait_active()
    running.process.send_signal(signal.SIGQUIT)
    running.wait_exit()
    assert ids(app) == [one.id for one in (first, *others)]
    assert in_hand(app) == 0


@pytest.mark.parametrize("pool", first_of(*POOLS))
def test_after_a_lost_connection_all_run_once_and_in_order(worker, app, redis_url, pool):
    """What was in hand was acknowledged, or has gone back, by the next connection."""
    broker = Outage(redis_url)
    running = worker(
        APP, "-P", pool, env=ONE_LANE, servers=Servers(broker=broker.url, backend=redis_url)
    )
    first, _ = send(app, "abcde")
    wait_until(lambda: in_hand(app) == 4, "one runs and three wait")
    running.wait_active()
    broker.begin()
    running.wait_for_log("Connection to broker lost", timeout=20)
    app.app.backend.client.set("go on", 1)
    if pool != "gevent":  # its calls stand still as long as Celery connects anew
        assert first.get(timeout=10) is None
    broker.end()
    assert first.get(timeout=20) is None
    redis = app.app.backend.client
    wait_until(lambda: redis.llen("ran") == 5, "all run", timeout=30, detail=running.tail)
    assert redis.lrange("ran", 0, -1) == [b"a", b"b", b"c", b"d", b"e"]
    wait_until(lambda: in_hand(app) == 0, "all is settled", detail=running.tail)
    assert not ids(app)
