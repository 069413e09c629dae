"""Keys that have used much lately, in the scripts of limits: with a clock that the test sets."""

from __future__ import annotations

import math

import pytest
from redis import Redis

from celery_budgets.model.limit import Demand, Limit
from celery_budgets.shared_state.answers import Ask, Release
from celery_budgets.shared_state.limit_store import LimitStore
from tests.unit.shared_state.model_checks import CLOCK

SHARED = Limit("shared", 1)
TENANT = Limit("tenant", 2, key="tenant")
USED = "celery-budgets:{limits}:used:tenant"
HALF_LIFE = 600


class Place:
    """A store whose calls need a place of their key, and one that all share."""

    def __init__(self, client):
        self.client = client
        self.store = LimitStore(client, length=3600, clock=CLOCK)
        self.store.send_back(20)
        self.now = 0
        self.pass_time(1)
        self.told = client.pubsub()
        self.told.subscribe(self.store.channels + "p")
        assert self.told.get_message(timeout=5)["type"] == "subscribe"

    def pass_time(self, seconds):
        self.now += round(seconds * 1_000_000)
        self.client.set("clock", self.now)

    def demands(self, key):
        return [Demand(SHARED), Demand(TENANT, key)]

    def ask(self, name, key, since=0):
        ask = Ask(f"p:{name}", self.demands(key), since, name)
        (answer,) = self.store.exchange([], [ask])
        if answer.aside:
            self.store.put_aside([(ask, answer, name.encode())])
        return answer

    def end(self, name, key, held=0.0):
        self.store.exchange([Release(f"p:{name}", self.demands(key), "", held)], [])

    def offered(self):
        """Return who was told of a place since."""
        self.client.publish(self.store.channels + "p", "last")
        names = []
        while not names or names[-1] != "last":
            message = self.told.get_message(timeout=5)
            names.append(message["data"].decode().removeprefix("p:"))
        return names[:-1]

    def used(self, key):
        """Return the slot-seconds that are left of what a key has used."""
        score = self.client.zscore(USED, f"key:{key}")
        return 0 if score is None else 2 ** (score - self.now / 1e6 / HALF_LIFE)


@pytest.fixture
def place(redis_url):
    with Redis.from_url(redis_url) as client:
        yield Place(client)


def test_what_a_key_has_used_halves_in_ten_minutes(place):
    """By the places that a call has held, and by how long: also while it runs."""
    place.store.exchange([Release("p:1", [Demand(TENANT, "a", 2)], "", 50.0)], [])
    assert place.used("a") == pytest.approx(100)
    place.pass_time(HALF_LIFE)
    assert place.used("a") == pytest.approx(50)
    assert place.ask("2", "a").granted
    place.store.renew([Release("p:2", place.demands("a"), "", 20.0)])
    assert place.used("a") == pytest.approx(70)
    assert place.used("b") == 0


def test_what_keys_have_used_stays_small(place):
    """Who has used nothing for long is forgotten, and of too many those that have used least."""
    place.end("1", "a", 100.0)
    place.pass_time(40 * HALF_LIFE)
    place.end("1", "b", 1.0)
    assert place.client.zrange(USED, 0, -1) == [b"key:b"]
    place.client.zadd(USED, {f"key:{n}": 45 + n / 1e6 for n in range(11_000)})
    place.end("1", "c", 1e6)
    assert place.client.zcard(USED) == 10_000
    assert math.isclose(place.used("c"), 1e6, rel_tol=1e-6)
    assert place.client.ttl(USED) > 10 * HALF_LIFE


def test_limits_without_a_key_count_nothing(place):
    """Off is free."""
    place.store.exchange([Release("p:1", [Demand(SHARED)], "", 50.0)], [])
    assert not place.client.exists("celery-budgets:{limits}:used:shared")


def test_a_shared_place_goes_to_the_key_that_has_used_least(place):
    """Whoever came first; within a key and among those that have used next to nothing in order."""
    place.end("0", "much", 200.0)
    place.end("0", "some", 50.0)
    assert place.ask("1", "x").granted
    for name, key in [("2", "much"), ("3", "much"), ("4", "some"), ("5", "y"), ("6", "z")]:
        place.pass_time(1)
        assert not place.ask(name, key).granted
    order = []
    ending = "1", "x"
    keys = {"2": "much", "3": "much", "4": "some", "5": "y", "6": "z"}
    for _ in range(5):
        place.end(*ending)
        (name,) = place.offered()
        answer = place.ask(name, keys[name], since=1)
        assert answer.granted
        order.append(name)
        ending = name, keys[name]
    assert order == ["5", "6", "4", "2", "3"]


def test_nobody_waits_for_ever(place):
    """Who has used however much stands as if it came a quarter of an hour later."""
    place.end("0", "much", 1e6)
    assert place.ask("1", "x").granted
    assert not place.ask("2", "much").granted
    place.pass_time(866)
    assert not place.ask("3", "y").granted
    place.end("1", "x")
    assert place.offered() == ["2"]


def test_who_asks_again_keeps_its_place_in_line(place):
    """However much its key has used meanwhile."""
    place.end("0", "a", 10.0)
    assert place.ask("1", "x").granted
    first = place.ask("2", "a")
    place.pass_time(20)
    assert not place.ask("3", "b", since=0).granted
    place.end("0", "a", 500.0)
    assert not place.ask("2", "a", since=first.since).granted
    place.end("1", "x")
    assert place.offered() == ["2"]


def test_no_more_of_a_key_wait_for_what_is_shared_than_it_may_have(place):
    """The others are put aside, and come when one of those has started and ended."""
    assert place.ask("1", "x").granted
    answers = {name: place.ask(name, "a") for name in "2345"}
    assert [name for name, answer in answers.items() if answer.aside] == ["4", "5"]
    assert all(answers[name].refused.limit is SHARED for name in "23")
    place.pass_time(9)
    for name in "23":  # they ask again, and keep it
        assert not place.ask(name, "a", answers[name].since).aside
    place.pass_time(9)
    assert place.ask("6", "a").aside
    place.end("1", "x")
    assert place.offered() == ["2"]
    assert place.ask("2", "a", answers["2"].since).granted
    assert place.store.taken_over() == []
    place.end("2", "a", 1.0)
    assert [one.name for one in place.store.taken_over()] == ["4"]


def test_who_gives_up_at_what_is_shared_gives_the_place_of_its_key_up(place):
    """Its message is with the broker again."""
    assert place.ask("1", "x").granted
    for name in "234":
        place.ask(name, "a")
    place.store.exchange([Release("p:2", place.demands("a"), "2")], [])
    assert [one.name for one in place.store.taken_over()] == ["4"]


def test_the_key_that_has_used_least_is_sent_back_first(place):
    """Of all who may come at once."""
    place.store.send_back(0)
    for key in "abc":
        demands = [Demand(Limit("tenant", 1, key="tenant"), key)]
        (held_by,) = place.store.exchange([], [Ask(f"p:{key}1", demands, 0, f"{key}1")])
        assert held_by.granted
        for name in (f"{key}2", f"{key}3"):
            ask = Ask(f"p:{name}", demands, 0, name)
            (answer,) = place.store.exchange([], [ask])
            place.store.put_aside([(ask, answer, b"")])
            place.pass_time(1)
    for key, held in (("a", 300.0), ("b", 3.0), ("c", 30.0)):
        demands = [Demand(TENANT, key)]  # two may come now
        place.store.exchange([Release(f"p:{key}1", demands, "", held)], [])
    place.store.send_back(20)
    place.store.poll({})
    names = [one.name for one in place.store.taken_over()]
    assert names == ["b2", "b3", "c2", "c3", "a2", "a3"]
