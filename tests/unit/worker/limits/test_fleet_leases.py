"""Calls that wait for places of limits over the fleet, without a worker and without Redis."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace

import pytest

from celery_budgets import Lane
from celery_budgets.model.limit import Demand, Limit
from celery_budgets.shared_state import offers
from celery_budgets.worker.lanes.lane_slots import WorkerSlots
from celery_budgets.worker.limits import fleet_leases
from celery_budgets.worker.limits.call_demands import demands_of_lanes
from celery_budgets.worker.limits.fleet_leases import FleetLeases


class Wish:
    def __init__(self, demands, tell):
        self.demands, self.tell = demands, tell
        self.granted, self.refused, self.unknown = False, None, False
        self.lost, self.valid_until, self.stepped, self.began = False, inf, False, 0.0
        self.passed_until, self.brakes, self.passable_until = 0.0, [], inf
        self.kept_until = 0.0


class Agent:
    """Grants what the test grants."""

    away = 0.0

    def __init__(self):
        self.asked, self.released, self.looks = [], [], []

    def ask(self, demands, tell, steps=None):
        self.asked.append(Wish(demands, tell))
        return self.asked[-1]

    def release(self, wish):
        self.asked.remove(wish)
        self.released.append(wish)

    def call_in(self, seconds, act):
        self.looks.append(act)

    def grant(self, place=0):
        waiting = [wish for wish in self.asked if not wish.granted]
        waiting[place].granted = True
        waiting[place].tell(waiting[place])


class Bench:
    """Slots of some lanes, with an agent; *size* slots over all of them."""

    def __init__(self, *lanes, size=10, fleet_concurrency=None, p95=0.02):
        self.agent, self.rung = Agent(), 0
        demands = demands_of_lanes({lane.name: lane for lane in lanes}, fleet_concurrency)
        self.leases = FleetLeases(demands, lambda on_lost: self.agent, self.ring, self.lose)
        self.lost = []
        self.slots = WorkerSlots(
            lanes, lambda: size, lambda lane: p95, self.ring, leases=self.leases
        )

    def ring(self):
        self.rung += 1

    def lose(self, request):
        self.lost.append(request)

    def offer(self, lane, count=1):
        calls = [SimpleCall(lane) for _ in range(count)]
        return calls, [call for call in calls if self.slots.take(call)]

    def due(self):
        return list(self.slots.due())


class SimpleCall(SimpleNamespace):
    def __init__(self, lane):
        super().__init__(lane=SimpleNamespace(name=lane), id=lane, type="t")
        self.task = SimpleNamespace(name="t")

    __hash__ = object.__hash__


def test_a_call_starts_with_a_place_and_gives_it_back_with_its_slot():
    """It waits without a slot until then."""
    bench = Bench(Lane("a", 2, fleet=1))
    (call,), started = bench.offer("a")
    assert started == []
    assert bench.slots.taken()["a"] == 0
    assert bench.due() == []
    bench.agent.grant()
    assert bench.rung == 1
    assert bench.due() == [call]
    bench.slots.release(call)
    assert len(bench.agent.released) == 1
    assert bench.agent.asked == []


def test_no_more_places_are_asked_for_than_calls_could_start():
    """Two slots: two places, however many calls wait."""
    bench = Bench(Lane("a", 2, fleet=5))
    calls, _ = bench.offer("a", 6)
    assert len(bench.agent.asked) == 2
    bench.agent.grant()
    bench.agent.grant()
    assert bench.due() == calls[:2]
    assert len(bench.agent.asked) == 2, "those that the two have"
    bench.slots.release(calls[0], succeeded=True)
    assert bench.due() == [calls[2]], "the place is passed on"
    assert len(bench.agent.asked) == 2


def test_a_place_that_no_call_can_use_is_given_back():
    """Its slot went to another lane meanwhile."""
    bench = Bench(Lane("a", 1, fleet=1), Lane("free", 2), size=1)
    bench.offer("a")
    assert len(bench.agent.asked) == 1
    (other,), started = bench.offer("free")
    assert started == [other]
    bench.agent.grant()
    assert bench.due() == []
    assert bench.agent.asked == []
    bench.slots.release(other)
    bench.due()
    assert len(bench.agent.asked) == 1


def test_a_lane_without_a_limit_runs_on_beside():
    """Nothing is asked for it."""
    bench = Bench(Lane("a", 1, fleet=1), Lane("free", 2))
    bench.offer("a", 3)
    calls, started = bench.offer("free", 2)
    assert started == calls
    assert len(bench.agent.asked) == 1


def test_what_waits_no_more_needs_no_place():
    """It went back to the broker."""
    bench = Bench(Lane("a", 2, fleet=1))
    calls, _ = bench.offer("a", 2)
    bench.agent.grant()
    assert bench.slots.give_up_held() == calls
    assert bench.agent.asked == []


def test_all_lanes_count_to_the_concurrency_of_the_fleet():
    """Beside the limit of their own."""
    bench = Bench(Lane("a", 2, fleet=1), Lane("b", 2), fleet_concurrency=3)
    bench.offer("a")
    bench.offer("b")
    assert [[demand.limit.name for demand in wish.demands] for wish in bench.agent.asked] == [
        ["@lane", "@fleet"], ["@fleet"],
    ]  # fmt: skip


def test_what_a_call_waits_for_is_known():
    """By a name for people; and whether Redis has said so."""
    bench = Bench(Lane("a", 2, fleet=1))
    (call,), _ = bench.offer("a")
    assert bench.leases.refused(call) is None
    (wish,) = bench.agent.asked
    wish.unknown = True
    assert bench.leases.refused(call) == ("fleet of lane a", False)
    wish.unknown, wish.refused = False, wish.demands[0]
    assert bench.leases.refused(call) == ("fleet of lane a", True)


def test_who_lost_its_place_is_told():
    """The call, by what it had."""
    bench = Bench(Lane("a", 2, fleet=1))
    (call,), _ = bench.offer("a")
    bench.agent.grant()
    bench.due()
    bench.leases._on_lost(bench.agent.asked[0])
    assert bench.lost == [call]


@pytest.mark.parametrize("field", [{"lost": True}, {"valid_until": 0.0}], ids=str)
def test_no_call_starts_on_a_place_that_may_be_another_s(field):
    """The process stood still between the grant and the start."""
    bench = Bench(Lane("a", 2, fleet=1))
    (call,), _ = bench.offer("a")
    bench.agent.grant()
    (wish,) = bench.agent.asked
    vars(wish).update(field)
    assert bench.due() == []
    vars(bench.agent.asked[0]).update(lost=False, valid_until=inf, granted=True)
    assert bench.due() == [call]
    assert (wish in bench.agent.released) == ("lost" in field)


@pytest.mark.parametrize(("fleet", "everywhere"), [(None, None), (2, None), (None, 2)])
def test_only_limited_lanes_need_anything(fleet, everywhere):
    """Off is free."""
    demands = demands_of_lanes({"a": Lane("a", 1, fleet=fleet)}, everywhere)
    assert bool(demands) == (fleet is not None or everywhere is not None)


def test_a_place_is_passed_on_for_a_moment_only(monkeypatch):
    """Then others may have it: it is given back, and the next call asks for one."""
    clock = [100.0]
    monkeypatch.setattr(fleet_leases, "monotonic", lambda: clock[0])
    bench = Bench(Lane("a", 1, fleet=1))
    calls, _ = bench.offer("a", 3)
    bench.agent.grant()
    assert bench.due() == [calls[0]]
    bench.slots.release(calls[0], succeeded=True)
    assert bench.due() == [calls[1]]
    assert bench.agent.released == []
    clock[0] += 1
    bench.slots.release(calls[1], succeeded=True)
    assert bench.due() == []
    assert len(bench.agent.released) == 1
    bench.agent.grant()
    assert bench.due() == [calls[2]]


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(fleet_leases, "monotonic", lambda: now[0])
    return now


def after_a_call():
    """A lane of one slot whose only call has just succeeded."""
    bench = Bench(Lane("a", 1, fleet=1))
    (call,), _ = bench.offer("a")
    bench.agent.grant()
    bench.due()
    bench.slots.release(call, succeeded=True)
    return bench


def test_a_place_is_kept_for_a_call_that_is_about_to_arrive(clock):
    """It starts at once, without asking."""
    bench = after_a_call()
    assert bench.due() == []
    assert bench.agent.released == []
    (second,), started = bench.offer("a")
    assert started == [second]
    assert len(bench.agent.asked) == 1
    assert second.limit_wait == 0


def test_a_place_that_nobody_comes_for_is_given_back_soon(clock):
    """It is looked at then, also where nothing else happens."""
    bench = after_a_call()
    bench.due()
    clock[0] += fleet_leases.KEPT
    bench.rung = 0
    for look in bench.agent.looks:
        look()
    assert bench.rung == 1
    bench.due()
    assert len(bench.agent.released) == 1
    assert bench.agent.asked == []


def test_the_place_of_a_call_that_has_not_succeeded_is_not_passed_on():
    """It may have found the limit closed."""
    bench = Bench(Lane("a", 1, fleet=1))
    calls, _ = bench.offer("a", 2)
    bench.agent.grant()
    bench.due()
    bench.slots.release(calls[0])
    assert len(bench.agent.released) == 1


@pytest.mark.parametrize("p95", [None, 0.2])
def test_a_place_is_passed_on_by_short_calls_alone(p95):
    """Who waits elsewhere is not to wait for a long one that came later."""
    bench = Bench(Lane("a", 1, fleet=1), p95=p95)
    calls, _ = bench.offer("a", 2)
    bench.agent.grant()
    bench.due()
    bench.slots.release(calls[0], succeeded=True)
    assert len(bench.agent.released) == 1


@pytest.mark.parametrize(
    "state", [{"brakes": ["closed"]}, {"lost": True}, {"passable_until": 0.0}], ids=str
)
def test_a_place_that_redis_has_to_hear_of_is_not_passed_on(state):
    """Its call has found the limit closed, or its lease is not renewed."""
    bench = Bench(Lane("a", 1, fleet=1))
    calls, _ = bench.offer("a", 2)
    bench.agent.grant()
    bench.due()
    (wish,) = bench.agent.asked
    vars(wish).update(state)
    bench.slots.release(calls[0], succeeded=True)
    assert bench.agent.released == [wish]


def test_a_rate_counts_each_call():
    """Its places are not passed on."""
    bench = Bench(Lane("a", 1))
    demands = (Demand(Limit("rated", 5, rate="100/s")),)
    bench.leases.of = lambda call: demands
    calls, _ = bench.offer("a", 2)
    bench.agent.grant()
    bench.due()
    bench.slots.release(calls[0], succeeded=True)
    assert len(bench.agent.released) == 1


@pytest.mark.parametrize("waits", [False, True])
def test_a_place_is_passed_on_for_longer_while_nobody_waits_elsewhere(clock, monkeypatch, waits):
    """It is asked again and again, beside the event loop; for a moment after the last answer."""
    monkeypatch.setattr(offers, "others_wait", lambda store, name, demands: waits)
    bench = Bench(Lane("a", 1, fleet=1))
    bench.agent.away, bench.agent.store, bench.agent.name = None, None, "p"
    calls, _ = bench.offer("a", 4)
    bench.agent.grant()
    bench.due()
    for call, after in zip(calls, [0.0, 0.04, 0.04], strict=False):
        clock[0] += after
        bench.slots.release(call, succeeded=True)
        bench.due()
        while bench.agent.looks:
            bench.agent.looks.pop(0)()
    assert len(bench.agent.released) == int(waits)
    clock[0] += 0.2
    bench.due()
    bench.slots.release(calls[3], succeeded=True)
    assert len(bench.agent.released) == 1
