"""Who waits aside, in the scripts of limits: with a clock that the test sets."""

from __future__ import annotations

import pytest
from redis import Redis

from celery_budgets.model.limit import Demand, Limit
from celery_budgets.shared_state.answers import Ask
from celery_budgets.shared_state.asides import Asides
from celery_budgets.shared_state.limit_store import LimitStore
from tests.unit.shared_state.model_checks import CLOCK

LENGTH = 60
TENANT = Limit("tenant", 1, key="tenant")
PACED = Limit("paced", rate="1/s", burst=1, key="tenant")
BOTH = Limit("both", 2, rate="1/s", burst=1, key="tenant")
LIMITS = {limit.name: limit for limit in (TENANT, PACED, BOTH)}


class Place:
    """A store that sends back, and what it was told to."""

    def __init__(self, client):
        self.client = client
        self.store = LimitStore(client, length=LENGTH, clock=CLOCK)
        self.store.send_back(20)
        self.now = 0
        self.pass_time(1)

    def pass_time(self, seconds):
        self.now += round(seconds * 1_000_000)
        self.client.set("clock", self.now)

    def ask(self, name, limit=TENANT, key="a", since=0, holder=None):
        """Ask for a call of that name; put it aside where it is to be. Return whether it starts."""
        demands, holder = [Demand(limit, key)], holder or f"p:{name}"
        answer = self.store.acquire(holder, demands, since, name)
        if answer.aside:
            ask = Ask(holder, demands, since, name)
            self.store.put_aside([(ask, answer, f"{name} {answer.since}".encode())])
        return answer.granted

    def end(self, name, limit=TENANT, key="a"):
        self.store.release(f"p:{name}", [Demand(limit, key)])

    def back(self):
        """Return the names that are to be sent back now, and since when they wait."""
        taken, self.store.taken = self.store.taken, []
        self.store.sent(taken)
        return {one.name: int(one.message.split()[1]) for one in taken}

    def poll(self):
        while (wait := self.store.poll(LIMITS)) == 0.0:
            pass
        return wait


@pytest.fixture
def place(redis_url):
    with Redis.from_url(redis_url) as client:
        yield Place(client)


def test_they_come_back_one_by_one_in_their_order(place):
    """Each has its place until it has arrived, and nobody who comes later takes that."""
    assert place.ask("1")
    for name in "234":
        place.pass_time(0.1)
        assert not place.ask(name)
    assert place.back() == {}
    place.end("1")
    ((name, since),) = place.back().items()
    assert name == "2"
    assert not place.ask("5"), "it has to wait behind those that came before"
    assert place.back() == {}
    assert place.ask("2", since=since)
    place.end("2")
    assert list(place.back()) == ["3"]


def test_who_is_about_to_be_put_aside_has_its_turn(place):
    """Else one that came later, from another worker, would be sent back first."""
    place.ask("1")
    demands = [Demand(TENANT, "a")]
    answer = place.store.acquire("p:2", demands, 0, "2")
    place.pass_time(0.01)
    place.ask("3", holder="other:3")
    place.end("1")
    assert place.back() == {}
    asked = Ask("p:2", demands, 0, "2")
    place.store.put_aside([(asked, answer, f"2 {answer.since}".encode())])
    assert list(place.back()) == ["2"]
    assert place.ask("2", since=answer.since)
    place.end("2")
    assert list(place.back()) == ["3"]


def test_who_was_never_put_aside_holds_up_others_for_a_moment_only(place):
    """Its worker has died in between: the broker delivers it again."""
    place.ask("1")
    assert place.store.acquire("p:2", [Demand(TENANT, "a")], 0, "2").aside
    place.pass_time(0.01)
    place.ask("3")
    place.end("1")
    assert place.back() == {}
    place.pass_time(6)
    place.poll()
    assert list(place.back()) == ["3"]


def test_one_that_does_not_arrive_is_passed_over(place):
    """Its lane may be full; it keeps its turn."""
    place.ask("1")
    for name in "23":
        place.ask(name)
        place.pass_time(0.1)
    place.end("1")
    (since,) = place.back().values()
    place.pass_time(6)
    place.poll()
    assert list(place.back()) == ["3"]
    assert not place.ask("2", since=since), "the place is that of another"
    place.pass_time(6)
    place.poll()
    assert list(place.back()) == ["2"]


def test_a_message_that_was_not_sent_is_sent_by_another(place):
    """Whoever had taken it has died."""
    place.ask("1")
    place.ask("2")
    place.end("1")
    assert [one.name for one in place.store.taken] == ["2"]
    place.store.taken.clear()
    place.poll()
    assert place.store.taken == [], "it is being sent"
    place.pass_time(11)
    place.poll()
    assert list(place.back()) == ["2"]
    place.pass_time(11)
    place.poll()
    assert place.back() == {}, "it was"
    assert place.client.hlen("celery-budgets:{limits}:asides") == 0


def test_a_process_that_ends_hands_on_what_it_has_taken(place):
    """Its event loop sends nothing any more: else others would take over after ten seconds."""
    sent = []
    asides = Asides(place.store, LIMITS, sent.append, lambda: None, lambda: 0.0)
    place.ask("1")
    place.ask("2")
    place.end("1")
    asides.end()
    asides.work()
    assert sent == []
    other = Place(place.client)
    other.pass_time(2)
    other.poll()
    assert list(other.back()) == ["2"]


def test_one_that_comes_back_before_that_is_noted_is_not_lost(place):
    """It was put aside anew: what was noted then is of the message before."""
    place.ask("1")
    place.ask("2")
    place.end("1")
    taken, place.store.taken = place.store.taken, []
    place.pass_time(6)
    assert place.ask("3", key="a")
    assert not place.ask("2", since=1)
    place.store.sent(taken)
    place.end("3")
    assert place.back() == {"2": 1}


def test_the_lease_of_a_dead_holder_ends(place):
    """Nobody tells: it is looked at then."""
    place.ask("1")
    place.ask("2")
    assert 0 < place.poll() <= 10
    place.pass_time(LENGTH + 1)
    place.poll()
    assert list(place.back()) == ["2"]


@pytest.mark.parametrize("limit", [PACED, BOTH], ids=lambda limit: limit.name)
def test_a_rate_lets_them_come_one_by_one(place, limit):
    """As many as may start, less those on their way."""
    assert place.ask("1", limit)
    for name in "234":
        assert not place.ask(name, limit)
    place.end("1", limit)
    assert place.back() == {}
    assert place.poll() == pytest.approx(1, abs=0.1)
    place.pass_time(1.01)
    place.poll()
    assert list(place.back()) == ["2"]
    place.poll()
    assert place.back() == {}, "one is on its way"
    assert place.ask("2", limit, since=1)
    place.pass_time(1.01)
    place.poll()
    assert list(place.back()) == ["3"]


@pytest.mark.parametrize("limit", [PACED, BOTH], ids=lambda limit: limit.name)
def test_a_turn_of_a_rate_is_that_of_who_is_sent_back_for_it(place, limit):
    """A call that asks for the first time in that moment waits for the next one."""
    assert place.ask("1", limit)
    place.end("1", limit)
    place.pass_time(0.1)
    assert not place.ask("2", limit)
    place.pass_time(1.0)
    assert not place.ask("3", limit), "the turn is that of the call before it"
    assert place.ask("2", limit, since=place.back()["2"])
    place.end("2", limit)
    place.pass_time(1.0)
    place.poll()
    assert place.ask("3", limit, since=place.back()["3"])


def test_a_delivery_that_is_repeated_waits_once(place):
    """Its first was not acknowledged: the worker died in between."""
    place.ask("1")
    place.ask("2")
    place.ask("2", holder="other:1")
    place.end("1")
    assert list(place.back()) == ["2"]
    assert place.ask("2", since=1)
    place.end("2")
    assert place.back() == {}


def test_what_is_handed_back_waits_aside_no_more(place):
    """Its message is with the broker again."""
    place.ask("1")
    place.ask("2")
    place.store.take_back("p:2", [Demand(TENANT, "a")], "2")
    place.end("1")
    assert place.back() == {}
    assert place.client.hlen("celery-budgets:{limits}:asides") == 0


def test_a_limit_that_is_gone_holds_nobody(place):
    """The app has dropped it: they all come back."""
    place.ask("1")
    for name in "23":
        place.ask(name)
    place.pass_time(11)
    LIMITS.pop("tenant")
    try:
        place.poll()
    finally:
        LIMITS["tenant"] = TENANT
    assert sorted(place.back()) == ["2", "3"]


def test_after_a_brake_one_comes_and_then_the_others(place):
    """Of a key; those of others do not notice."""
    limit = Limit("wide", 5, key="tenant")
    place.store.throttle("wide", "a", 30)
    for name in "123":
        assert not place.ask(name, limit)
    assert place.ask("other", limit, key="b")
    place.pass_time(31)
    LIMITS["wide"] = limit
    try:
        place.poll()
        assert list(place.back()) == ["1"]
        assert place.ask("1", limit, since=1)
        place.poll()
        assert place.back() == {}
        place.end("1", limit)
        assert sorted(place.back()) == ["2", "3"]
    finally:
        del LIMITS["wide"]


def test_many_calls_of_one_weight(place):
    """Each waits until there is room for all that it counts for."""
    limit = Limit("heavy", 3, key="tenant")
    demands = [Demand(limit, "a", 2)]
    assert place.store.acquire("p:1", demands, 0, "1").granted
    answer = place.store.acquire("p:2", demands, 0, "2")
    assert answer.aside
    place.store.put_aside([(Ask("p:2", demands, 0, "2"), answer, b"2 1")])
    assert place.back() == {}
    place.store.release("p:1", demands)
    assert list(place.back()) == ["2"]
    assert place.store.acquire("p:2", demands, 1, "2").granted


def test_how_long_it_has_waited_is_known_when_it_starts(place):
    """Also aside, and on its way, whoever asks for it then: by the clock of Redis."""
    demands = [Demand(TENANT, "a")]
    assert place.store.acquire("p:1", demands, 0, "1").waited == 0
    since = place.store.acquire("p:2", demands, 0, "2").since
    place.pass_time(30)
    place.store.release("p:1", demands)
    answer = place.store.acquire("q:7", demands, since, "2")
    assert answer.granted
    assert answer.waited == 30
