"""Workers that are killed while they take messages from Redis: no message is lost."""

from __future__ import annotations

import base64
import json
import random
import re
import threading
import time
from contextlib import contextmanager

import pytest
from kombu import Connection

from tests.support.waiting import wait_until

APP = "tests.brokers.killed_app"
MIXED = "tests.brokers.mixed_app"
#: Calls of the queue that plain workers share.
CALLS = 10_000
#: How long they are killed.
KILLING_SECONDS = 30.0
#: Enough calls that two workers are never without.
AHEAD = 1500


@pytest.fixture
def killed(load_app):
    return load_app(APP)


class Load:
    """Calls of both lanes and all priorities, and which of them have run."""

    def __init__(self, app):
        self._app = app
        self._redis = app.app.backend.client
        self.sent = 0

    def top_up(self):
        """Have AHEAD calls wait."""
        missing = AHEAD - (self.sent - self._redis.scard("ran"))
        with self._app.app.producer_or_acquire() as producer:
            for _ in range(max(0, missing)):
                self._app.run.apply_async(
                    (self.sent,), producer=producer,
                    lane=("quick", "other")[self.sent % 2],
                    priority=("high", "normal", "low")[self.sent % 3],
                )  # fmt: skip
                self.sent += 1

    def lost(self):
        ran = {int(number) for number in self._redis.smembers("ran")}
        return set(range(self.sent)) - ran


def give_back_what_the_dead_held(url):
    """Do at once what any worker does after the visibility timeout; by kombu's own code."""
    with Connection(url, transport_options={"visibility_timeout": 0}) as broker:
        broker.channel().qos.restore_visible(num=10_000, interval=1)


def wait_for_all(killed, load, running):
    wait_until(
        lambda: not load.lost(), "all have run", timeout=120, detail=running.tail, interval=0.5
    )
    redis = killed.app.backend.client
    wait_until(lambda: not redis.exists("unacked", "unacked_index"), "all is settled")


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_sixty_kills_lose_nothing(worker, killed, redis_url):
    """Two workers, two lanes, three priorities, each killed with its processes under load."""
    chance, load = random.Random(15), Load(killed)
    for _ in range(30):
        load.top_up()
        pair = [worker(APP, "-c", "8", ready=False) for _ in range(2)]
        for each in pair:
            each.wait_ready()
        for each in pair:
            moment = time.monotonic() + chance.uniform(0.0, 0.3)
            wait_until(lambda moment=moment: time.monotonic() >= moment, "the moment to kill")
            each.kill()
        give_back_what_the_dead_held(redis_url)
    wait_for_all(killed, load, worker(APP, "-c", "8"))
    print(f"60 kills, {load.sent} calls, none lost")


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_worker_that_goes_kombus_way_shares_the_queues(worker, killed, redis_url):
    """It lives on beside ours, of which ten are killed: what ours held it runs."""
    chance, load = random.Random(16), Load(killed)
    theirs = worker(APP, "-c", "4", env={"TRANSPORT": "kombu"})
    for _ in range(10):
        load.top_up()
        ours = worker(APP, "-c", "8")
        moment = time.monotonic() + chance.uniform(0.0, 0.3)
        wait_until(lambda moment=moment: time.monotonic() >= moment, "the moment to kill")
        ours.kill()
    theirs.stop()
    give_back_what_the_dead_held(redis_url)
    wait_for_all(killed, load, worker(APP, "-c", "8", env={"TRANSPORT": "kombu"}))


def tags_of(texts):
    """The number of each call, by the delivery tag of its message."""
    found = {}
    for text in texts:
        message = json.loads(text)
        (number,), _, _ = json.loads(base64.b64decode(message["body"]))
        found[message["properties"]["delivery_tag"]] = number
    return found


@contextmanager
def noted_by_scripts(redis, tags):
    """The calls that workers of ours have held: their scripts note what they take in unacked."""
    held, over, begun = set(), threading.Event(), threading.Event()
    database = redis.connection_pool.connection_kwargs["db"]

    def watch():
        with redis.monitor() as monitor:
            begun.set()
            for command in monitor.listen():
                if over.is_set():
                    return
                text = command["command"]
                if (
                    command["client_type"] == "lua"
                    and command["db"] == database
                    and text.startswith("HSET unacked ")
                ):
                    held.update(tags[tag] for tag in _TAG.findall(text) if tag in tags)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    assert begun.wait(5)
    try:
        yield held
    finally:
        over.set()
        redis.ping()
        watcher.join(timeout=10)


_TAG = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_beside_plain_workers_what_ours_held_is_never_lost(worker, load_app, redis_url):
    """Two of each kind share one queue, and are killed at random.

    Plain Celery loses what it has taken and not noted yet; so whatever is lost, ours never had.
    """
    app, chance = load_app(MIXED, KIND="ours"), random.Random(17)
    redis = app.app.backend.client
    with app.app.producer_or_acquire() as producer:
        for number in range(CALLS):
            app.run.apply_async((number,), producer=producer)
    tags = tags_of(redis.lrange("mixed", 0, -1))
    kinds = ("plain", "ours", "plain", "ours")
    with noted_by_scripts(redis, tags) as held:
        killed, until = 0, time.monotonic() + KILLING_SECONDS
        while time.monotonic() < until:
            workers = [worker(MIXED, "-c", "2", ready=False, env={"KIND": kind}) for kind in kinds]
            for each in workers:
                each.wait_ready()
            for each in chance.sample(workers, len(workers)):
                moment = time.monotonic() + chance.uniform(0.0, 0.1)
                wait_until(lambda moment=moment: time.monotonic() >= moment, "the moment to kill")
                each.kill()
            killed += len(workers)
            redis.delete("unacked_mutex")  # a plain worker that dies at its sweep has it for 300 s
            give_back_what_the_dead_held(redis_url)
        last = [worker(MIXED, "-c", "2", env={"KIND": kind}) for kind in kinds[:2]]
        wait_until(
            lambda: not redis.exists("mixed", "unacked"), "nothing waits", timeout=60,
            detail=last[1].tail,
        )  # fmt: skip
    lost = set(tags.values()) - {int(number) for number in redis.smembers("ran")}
    assert len(held) > CALLS / 10
    assert not lost & held
    print(f"{killed} kills, {len(lost)} lost, none of {len(held)} that ours have held")
