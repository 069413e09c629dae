"""Workers that are killed while they take messages from Redis: no message is lost."""

from __future__ import annotations

import random
import time

import pytest
from kombu import Connection

from tests.support.waiting import wait_until

APP = "tests.brokers.killed_app"
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
