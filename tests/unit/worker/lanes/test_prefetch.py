"""How many messages the broker sends ahead, and more of them while a flood is put aside."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_budgets import Lane
from celery_budgets.model.lanes import Lanes
from celery_budgets.worker.lanes.lane_slots import WorkerSlots
from celery_budgets.worker.lanes.prefetch import FIRST_IN_FLOOD, MOST_IN_FLOOD, Prefetch

LANES = Lanes([Lane("a", 4), Lane("b", 2)], global_concurrency=10)


class Bench:
    def __init__(self, multiplier=2):
        self.slots = WorkerSlots(LANES.values(), lambda: 6, lambda lane: None, lambda: None)
        self.prefetch = Prefetch(LANES, self.slots, lambda: multiplier)

    def step_aside(self, lane="a"):
        """Return the queues whose count has changed."""
        return self.prefetch.put_aside([SimpleNamespace(lane=LANES[lane])])


def test_a_lane_is_sent_as_many_as_it_has_slots_times_the_multiplier():
    bench = Bench()
    assert [bench.prefetch.of(queue) for queue in ("a", "b", "celery")] == [8, 4, None]
    bench.prefetch.later["a"] += 3
    assert bench.prefetch.of("a") == 11
    bench.prefetch.by_consumer = True
    assert bench.prefetch.of("a") == 8


def test_more_and_more_while_calls_are_put_aside():
    """Up to a bound; other lanes are not concerned."""
    bench = Bench()
    counts = []
    while bench.step_aside():
        counts.append(bench.prefetch.of("a") - 8)
    assert counts == [FIRST_IN_FLOOD, 2 * FIRST_IN_FLOOD, MOST_IN_FLOOD]
    assert bench.prefetch.of("b") == 4
    assert bench.prefetch.put_aside([]) == []


def test_as_usual_when_it_is_over(monkeypatch):
    bench = Bench()
    bench.step_aside()
    assert bench.prefetch.floods_over() == []
    monkeypatch.setattr(bench.slots.lanes["a"], "_flooded_until", 0.0)
    assert bench.prefetch.floods_over() == ["a"]
    assert bench.prefetch.of("a") == 8
    assert bench.prefetch.floods_over() == []


@pytest.mark.parametrize("multiplier", [0, 1])
def test_where_the_broker_sends_all_it_goes_on_to_do_so(multiplier):
    bench = Bench(multiplier)
    bench.step_aside()
    assert bench.prefetch.of("a") == (4 + FIRST_IN_FLOOD if multiplier else 0)


def test_a_count_per_consumer_stays():
    """It would take a new consumer each time: RabbitMQ, with quorum queues."""
    bench = Bench()
    bench.prefetch.by_consumer = True
    assert bench.step_aside() == []
    assert bench.prefetch.of("a") == 8
