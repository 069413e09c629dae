"""Whose turn it is: limits, borrowing, priorities and fairness, without a worker."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_budgets import ConfigurationError, Lane
from celery_budgets.model.priority import Priority
from celery_budgets.worker.lanes.lane_slots import BORROW_SECONDS, WorkerSlots


class Call:
    """A delivery in a lane."""

    def __init__(self, lane, priority=Priority.NORMAL):
        self.lane, self.priority = SimpleNamespace(name=lane), priority


class Bench:
    """Slots of some lanes, and what they ask for."""

    def __init__(self, *lanes, size=None, p95=0.1, priorities=False, aging=60.0):
        self.woken = 0
        self.p95 = p95
        self.size = size or sum(lane.concurrency for lane in lanes)
        self.slots = WorkerSlots(
            lanes, lambda: self.size, lambda lane: self.p95, self.wake,
            (lambda call: call.priority) if priorities else None, aging,
        )  # fmt: skip

    def wake(self):
        self.woken += 1

    def fill(self, lane, count, priority=Priority.NORMAL):
        """Offer *count* calls; return those that got a slot."""
        calls = [Call(lane, priority) for _ in range(count)]
        return [call for call in calls if self.slots.take(call)]

    @property
    def taken(self):
        return dict(self.slots.taken())


def test_a_lane_has_its_limit_and_keeps_the_rest_in_order():
    bench = Bench(Lane("a", 2), Lane("b", 3))
    first, second = bench.fill("a", 2)
    third, fourth = Call("a"), Call("a")
    assert not bench.slots.take(third)
    assert not bench.slots.take(fourth)
    assert bench.taken == {"a": 2, "b": 0}
    assert list(bench.slots.due()) == []
    bench.slots.release(first)
    assert bench.woken == 1
    assert list(bench.slots.due()) == [third]
    bench.slots.release(second)
    assert list(bench.slots.due()) == [fourth]


def test_a_slot_is_reserved_once_and_given_back_once():
    bench = Bench(Lane("a", 1))
    call = Call("a")
    assert bench.slots.take(call)
    assert bench.slots.take(call), "it has one already"
    bench.slots.release(call)
    bench.slots.release(call)
    bench.slots.release(Call("a"))
    assert bench.taken == {"a": 0}
    assert len(bench.fill("a", 3)) == 1


def test_a_newcomer_goes_behind_those_that_wait():
    bench = Bench(Lane("a", 1))
    (running,) = bench.fill("a", 1)
    waiting = Call("a")
    bench.slots.take(waiting)
    bench.slots.release(running)
    newcomer = Call("a")
    assert not bench.slots.take(newcomer)
    assert list(bench.slots.due()) == [waiting]


def test_short_of_slots_the_least_full_lane_goes_first():
    bench = Bench(Lane("a", 4), Lane("b", 4), size=4)
    running = bench.fill("a", 4)
    for lane in ("a", "b", "b"):
        bench.slots.take(Call(lane))
    bench.slots.release(running[0])
    assert [call.lane.name for call in bench.slots.due()] == ["b"]
    bench.slots.release(running[1])
    assert [call.lane.name for call in bench.slots.due()] == ["b"]
    bench.slots.release(running[2])
    assert [call.lane.name for call in bench.slots.due()] == ["a"]


def test_idle_slots_are_borrowed_up_to_max_and_min_stays_free():
    bench = Bench(Lane("quick", 2, max=8), Lane("lender", 6, min=3), Lane("other", 4))
    assert len(bench.fill("quick", 10)) == 5, "2 of its own, 3 of the lender's, none of the other's"
    assert len(bench.fill("other", 4)) == 4
    assert len(bench.fill("lender", 6)) == 3, "its minimum, at once"


def test_a_lent_slot_comes_back_before_it_is_lent_again():
    bench = Bench(Lane("quick", 1, max=4), Lane("lender", 3, min=0))
    borrowed = bench.fill("quick", 4)
    assert len(borrowed) == 4
    for lane in ("quick", "lender"):
        bench.slots.take(Call(lane))
    bench.slots.release(borrowed[0])
    assert [call.lane.name for call in bench.slots.due()] == ["lender"]


@pytest.mark.parametrize(("p95", "most"), [(None, 1), (BORROW_SECONDS + 1, 1), (BORROW_SECONDS, 4)])
def test_nothing_is_lent_to_calls_that_are_long_or_unknown(p95, most):
    bench = Bench(Lane("a", 1, max=4), Lane("lender", 3, min=0), p95=p95)
    assert len(bench.fill("a", 4)) == most


def test_without_min_nothing_is_lent_and_without_max_nothing_borrowed():
    assert len(Bench(Lane("a", 1, max=4), Lane("b", 3)).fill("a", 4)) == 1
    assert len(Bench(Lane("a", 1), Lane("b", 3, min=0)).fill("a", 4)) == 1


def test_a_limit_that_is_changed_counts_from_the_next_call():
    bench = Bench(Lane("a", 4), size=8)
    running = bench.fill("a", 6)
    bench.slots.set_limit("a", 2)
    for call in running[:2]:
        bench.slots.release(call)
    assert list(bench.slots.due()) == []
    bench.slots.set_limit("a", 4)
    assert len(list(bench.slots.due())) == 2
    assert bench.woken >= 2


def test_kept_calls_go_by_priority_and_by_arrival_within_each():
    bench = Bench(Lane("a", 1), priorities=True)
    (running,) = bench.fill("a", 1)
    calls = [Call("a", priority) for priority in (*reversed(Priority), *reversed(Priority))]
    for call in calls:
        bench.slots.take(call)
    order = []
    while bench.slots.held()["a"]:
        bench.slots.release(running)
        (running,) = bench.slots.due()
        order.append(calls.index(running))
    assert order == [2, 5, 1, 4, 0, 3]


def test_a_low_call_that_is_due_goes_first_and_one_at_a_time():
    bench = Bench(Lane("a", 1), priorities=True, aging=10)
    (running,) = bench.fill("a", 1)
    low, high, lower = Call("a", Priority.LOW), Call("a", Priority.HIGH), Call("a", Priority.LOW)
    for call in (low, high, lower):
        bench.slots.take(call)
    bench.slots.lanes["a"].low_at -= 11
    assert bench.slots.low_is_due("a")
    bench.slots.release(running)
    assert list(bench.slots.due()) == [low]
    assert not bench.slots.low_is_due("a")
    bench.slots.release(low)
    assert list(bench.slots.due()) == [high]


def test_what_is_given_up_is_kept_no_more():
    bench = Bench(Lane("a", 1), Lane("b", 1))
    running = bench.fill("a", 1) + bench.fill("b", 1)
    kept = [Call("a"), Call("b"), Call("a")]
    for call in kept:
        bench.slots.take(call)
    assert bench.slots.give_up_held("b") == [kept[1]]
    assert bench.slots.give_up_held() == [kept[0], kept[2]]
    for call in running:
        bench.slots.release(call)
    assert list(bench.slots.due()) == []
    assert bench.slots.reserved() == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"min": 3}, "lane 'a': min 3 must be between 0 and its concurrency (2)"),
        ({"min": -1}, "lane 'a': min -1 must be between 0 and its concurrency (2)"),
        ({"max": 1}, "lane 'a': max 1 is below its concurrency (2); raise it, or leave it out"),
        ({"max": True}, "lane 'a': max True is no whole number"),
        ({"priority": "urgent"}, "lane 'a': priority 'urgent' is not known"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, problem):
    with pytest.raises(ConfigurationError) as caught:
        Lane("a", 2, **fields)
    assert caught.value.problems[0].startswith(problem)


def test_nothing_is_kept_free_for_a_lane_of_another_worker():
    """Its calls do not come here, so that nobody would ever use the slots."""
    bench = Bench(Lane("a", 3, min=1), Lane("b", 3), size=3)
    bench.slots.lanes["b"].served = False
    assert len(bench.fill("a", 3)) == 3


def test_a_lane_is_full_where_it_could_start_no_call():
    """By its own limit, or because others have the rest of the pool."""
    bench = Bench(Lane("a", 2), Lane("b", 3), size=3)
    bench.fill("a", 1)
    assert bench.slots.full() == []
    (second,) = bench.fill("a", 1)
    assert [lane for lane, _ in bench.slots.full()] == ["a"]
    bench.fill("b", 1)
    assert sorted(lane for lane, _ in bench.slots.full()) == ["a", "b"]
    bench.slots.release(second)
    assert bench.slots.full() == []


def test_how_many_are_before_a_held_call():
    """In order of arrival; by priority where the app has some."""
    for priorities, before in ((False, [0, 1, 2]), (True, [1, 2, 0])):
        bench = Bench(Lane("a", 1), priorities=priorities)
        bench.fill("a", 1)
        held = [Call("a", level) for level in (Priority.NORMAL, Priority.LOW, Priority.HIGH)]
        for number, call in enumerate(held):
            call.id = f"c{number}"
            assert not bench.slots.take(call)
        found = [bench.slots.held_of_id(call.id) for call in held]
        assert found == [[(call, place)] for call, place in zip(held, before, strict=True)]
    assert bench.slots.held_of_id("c9") == []
