"""Calls that run although the pool knows nothing of them any more."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_budgets import Lane
from celery_budgets.worker.lanes import dropped_calls
from celery_budgets.worker.lanes.dropped_calls import DroppedCalls
from celery_budgets.worker.lanes.lane_slots import WorkerSlots


class Call:
    id = "x"
    lane = SimpleNamespace(name="a")
    limits = SimpleNamespace(hard=30)


class Flights:
    """The record of one process: what it runs, and whether that has ended."""

    def __init__(self):
        self.running = {}

    def pids(self):
        return [1]

    def read(self, pid, task_id):
        ended = self.running.get(task_id)
        return None if ended is None else SimpleNamespace(ended=ended)


@pytest.fixture
def bench(monkeypatch):
    """A lane of one slot, taken by a call that was dropped; time is ours."""
    now = [100.0]
    monkeypatch.setattr(dropped_calls, "monotonic", lambda: now[0])
    slots = WorkerSlots([Lane("a", 1)], lambda: 1, lambda lane: None, lambda: None)
    call = Call()
    assert slots.take(call)
    flights = Flights()
    dropped = DroppedCalls(slots, flights)
    dropped.add([call])
    return SimpleNamespace(now=now, slots=slots, flights=flights, dropped=dropped)


def taken_after(bench, seconds):
    bench.now[0] += seconds
    bench.dropped.look()
    return bench.slots.taken()["a"]


def test_one_that_never_begins_gives_its_slot_back(bench):
    assert taken_after(bench, 1) == 1, "it may be on its way into a process"
    assert taken_after(bench, 2) == 0


def test_one_that_runs_keeps_its_slot_until_it_has_ended(bench):
    bench.flights.running["x"] = False
    assert taken_after(bench, 10) == 1
    bench.flights.running["x"] = True
    assert taken_after(bench, 1) == 0


def test_no_slot_is_kept_beyond_the_hard_limit(bench):
    bench.flights.running["x"] = False
    assert taken_after(bench, 33) == 0
