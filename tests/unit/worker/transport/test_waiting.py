"""Many workers wait for the messages of one queue: one message does not wake all of them."""

from __future__ import annotations

import time

import pytest
from kombu import Connection
from redis import Redis

from tests.unit.worker.transport.test_fetching import Consumed, send

WORKERS = 8


class Fleet:
    """Workers with room for one message each, which take their turns one after the other."""

    def __init__(self, url):
        self.workers = [Consumed(url, prefetch=1) for _ in range(WORKERS)]
        self.turn()

    def turn(self, seconds=0.05):
        for worker in self.workers:
            worker.drain(seconds)

    def payloads(self):
        return [message.payload for worker in self.workers for message in worker.messages]

    def settle(self):
        for worker in self.workers:
            while worker.messages:
                worker.messages.pop().ack()


@pytest.fixture
def fleet(redis_url):
    fleet = Fleet(redis_url)
    yield fleet
    for worker in fleet.workers:
        worker.connection.close()


def test_who_came_too_late_waits_for_a_turn(fleet, redis_url):
    """After the first message few wait; each later one wakes those, and is taken."""
    with Redis.from_url(redis_url) as redis:
        send(redis_url, ["first"])
        fleet.turn()
        assert fleet.payloads() == ["first"]
        fleet.settle()
        for number in range(10):
            before = redis.info("commandstats")["cmdstat_blmove"]["calls"]
            began = time.monotonic()
            send(redis_url, [number])
            fleet.turn()
            assert fleet.payloads() == [number]
            fleet.settle()
            woken = redis.info("commandstats")["cmdstat_blmove"]["calls"] - before
            # Those whose second is over wait for messages again, and one turn takes half of one.
            assert woken < WORKERS + 3 or time.monotonic() - began > 1


def test_a_turn_is_passed_on_by_whoever_has_no_room_left(fleet, redis_url):
    """So a second message starts at once, though all but one had come too late for the first."""
    send(redis_url, ["first"])
    fleet.turn(0.02)
    send(redis_url, ["second"])
    began = time.monotonic()
    while fleet.payloads().count("second") == 0:
        fleet.turn(0.01)
        assert time.monotonic() - began < 5
    assert sorted(fleet.payloads()) == ["first", "second"]


def test_after_many_messages_at_once_every_worker_is_woken(fleet, redis_url):
    send(redis_url, ["first"])
    fleet.turn(0.02)
    send(redis_url, range(WORKERS - 1))
    began = time.monotonic()
    while len(fleet.payloads()) < WORKERS:
        fleet.turn(0.01)
        assert time.monotonic() - began < 10


def test_all_go_on_waiting_where_a_plain_worker_was_first(fleet, redis_url):
    """It gives nobody a turn."""
    send(redis_url, ["first"])
    with Connection(redis_url) as plain:
        queue = plain.SimpleQueue("lane")
        queue.get(timeout=1).ack()
        queue.close()
    fleet.turn()
    assert not fleet.payloads()
    assert not any(worker.channel.waits._too_late for worker in fleet.workers)
    with Redis.from_url(redis_url) as redis:
        assert not redis.exists("lane.turns", "lane.taken")
