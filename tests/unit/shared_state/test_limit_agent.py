"""Agents of several processes on one server: who waits is told, who is gone is passed over."""

from __future__ import annotations

from time import monotonic

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from celery_budgets.model.limit import Demand, Limit
from celery_budgets.shared_state import limit_agent
from celery_budgets.shared_state.answers import Answer
from celery_budgets.shared_state.limit_agent import LimitAgent
from celery_budgets.shared_state.limit_store import LimitStore
from tests.support.waiting import wait_until

ONE = [Demand(Limit("one", 1))]


@pytest.fixture
def agents(redis_url):
    """A function that returns an agent with a lease of so many seconds."""
    made = []

    def make(length=30.0, **options):
        stores = [
            LimitStore(Redis.from_url(redis_url, socket_timeout=2), length=length) for _ in "ab"
        ]
        made.append((LimitAgent(*stores, **options), stores))
        return made[-1][0]

    yield make
    for agent, stores in made:
        agent.stop()
        for store in stores:
            store.client.close()


def ask(agent, demands=ONE):
    wish = agent.ask(demands, lambda wish: None)
    wait_until(lambda: wish.granted or wish.refused or wish.unknown, "it has an answer")
    return wish


def test_who_waits_is_told_at_once_when_there_is_room(agents):
    """Long before it would ask again by itself, and in the order of the first asking."""
    first, second, third = agents(), agents(), agents()
    holds = ask(first)
    waits, last = ask(second), ask(third)
    assert waits.refused.limit.name == last.refused.limit.name == "one"
    began = monotonic()
    first.release(holds)
    wait_until(lambda: waits.granted, "the second is granted")
    assert monotonic() - began < limit_agent.ASKS_AGAIN / 2
    assert not last.granted
    second.release(waits)
    wait_until(lambda: last.granted, "the third is granted")
    assert monotonic() - began < limit_agent.ASKS_AGAIN


def test_who_waits_no_more_is_passed_over(agents):
    """And who has gone without a word, too."""
    first, second, third = agents(), agents(), agents()
    holds, gives_up, dies, waits = ask(first), ask(second), ask(second), ask(third)
    second.release(gives_up)
    second._thread.stop()  # as if killed: it gives nothing back, and hears nothing
    second._offers.stop()
    second._held.clear()
    second._waiting.clear()
    second._bell.ring()
    second._thread.join(5)
    second._offers._thread.join(5)
    began = monotonic()
    first.release(holds)
    wait_until(lambda: waits.granted, "the third is granted")
    assert monotonic() - began < limit_agent.ASKS_AGAIN / 2
    assert not dies.granted


def test_a_place_is_kept_for_longer_than_a_lease(agents):
    """It is renewed; that of a process that is gone is free after one."""
    first, second = agents(length=0.6), agents(length=0.6)
    holds = ask(first)
    waits = ask(second)
    began = monotonic()
    wait_until(lambda: monotonic() - began > 2, "time passes")
    assert not waits.granted
    assert not holds.lost
    first._held.clear()  # it renews nothing any more
    began = monotonic()
    wait_until(lambda: waits.granted, "the other one has it")
    assert monotonic() - began < limit_agent.ASKS_AGAIN / 2


def test_who_stood_still_for_longer_than_a_lease_is_told_that_it_lost(agents):
    """Once, where others have taken its place; it takes it again where nobody has."""
    lost = []
    first, second = agents(length=0.6, on_lost=lost.append), agents(length=30)
    holds = ask(first)
    kept = dict(first._held)
    first._held.clear()
    takes = ask(second)
    wait_until(lambda: takes.granted, "its lease has ended")
    first._held.update(kept)
    first._bell.ring()
    wait_until(lambda: lost == [holds], "it is told")
    assert holds.lost
    first._bell.ring()
    ask(first, [Demand(Limit("other", 1))])
    assert lost == [holds]


def test_a_rate_lets_its_burst_start_and_then_one_by_one(agents):
    """2 at once, then 20 a second."""
    agent = agents()
    demands = [Demand(Limit("rate", rate="20/s", burst=2))]
    began = monotonic()
    granted = []
    wishes = [agent.ask(demands, lambda w: granted.append(monotonic())) for _ in range(12)]
    wait_until(lambda: all(wish.granted for wish in wishes), "all have started")
    assert 0.49 < monotonic() - began < 5


class Away:
    """A store whose server may be away."""

    def __init__(self, length=3.0):
        self.length, self.away, self.granted = length, True, []
        self.client, self.channels, self.waited = self, "", 0.0

    def ping(self):
        if self.away:
            raise RedisConnectionError("away")

    def exchange(self, releases, asks):
        if releases or asks:
            self.ping()
        self.granted += [ask.holder for ask in asks]
        return [Answer(granted=True, waited=self.waited) for _ in asks]

    def renew(self, held):
        self.ping()
        return [True for _ in held]

    def release(self, holder, demands):
        self.ping()


@pytest.fixture
def offline():
    clock = [1000.0]
    store = Away()
    agent = LimitAgent(store, store, clock=lambda: clock[0])
    agent._thread = type("Ticked", (), {"stop": lambda self: None, "join": lambda self, s: None})()

    def after(seconds):
        clock[0] += seconds
        agent.tick()

    return agent, store, after


def test_without_redis_new_calls_wait_and_say_so(offline):
    """They get their places when it is back, after those who have some have renewed them."""
    agent, store, after = offline
    told = []
    wish = agent.ask(ONE, lambda wish: told.append((wish.granted, wish.unknown)))
    after(0)
    assert told == [(False, True)]
    assert agent.away == 0
    after(60)
    assert told == [(False, True)]
    store.away = False
    after(1)
    assert agent.away is None
    assert not wish.granted
    after(2)
    assert told == [(False, True), (True, False)]


def test_without_redis_calls_run_after_a_lease_where_their_limits_say_so(offline):
    """All of them; one that says wait is enough to wait."""
    agent, _, after = offline
    runs = [Demand(Limit("run", 1, on_outage="run"))]
    wish = agent.ask(runs, lambda wish: None)
    other = agent.ask(runs + ONE, lambda wish: None)
    after(0)
    after(2)
    assert not wish.granted
    after(2)
    assert wish.granted
    assert not other.granted


def test_what_redis_never_heard_of_is_not_kept_while_it_is_away(offline):
    """A program may try for hours."""
    agent, _, after = offline
    for _ in range(100):
        agent.release(agent.ask(ONE, lambda wish: None))
        after(0.1)
    assert len(agent._todo) <= 2


def test_what_came_from_aside_has_waited_since_it_asked_first(offline):
    """Wherever that was."""
    agent, store, after = offline
    store.away, store.waited = False, 20.0
    wish = agent.ask(ONE, lambda wish: None)
    after(0)
    assert wish.granted
    assert wish.began == agent._clock() - 20
