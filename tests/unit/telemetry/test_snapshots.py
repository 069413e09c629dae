"""Slots and memory at one moment, from crafted answers."""

from __future__ import annotations

import pytest

from celery_budgets.telemetry.snapshots import Concurrency, Memory, Slots, WorkerMemory
from celery_budgets.units import MIB
from tests.support.answers import answer, lane


def test_slots_add_up_over_workers_and_lanes():
    """The limit of all is what the workers may run at once, not the sum of their lanes."""
    answers = {
        "a@h": answer({"quick": lane(2, 2, 5), "slow": lane(1, 1)}, capacity=2),
        "b@h": answer({"quick": lane(1, 2, 1)}, capacity=2),
    }
    found = Concurrency.of(answers, silent=("c@h",))
    assert found.workers["a@h"] == {"quick": Slots(2, 2, 5), "slow": Slots(1, 1, 0)}
    assert found.lanes == {"quick": Slots(3, 4, 6), "slow": Slots(1, 1, 0)}
    assert found.total == Slots(active=4, limit=4, waiting=6)
    assert found.silent == ("c@h",)


def test_nobody_there_is_no_slots():
    """Not an error: the question was answered by nobody."""
    assert Concurrency.of({}).total == Slots(0, 0, 0)
    assert Memory.of({}, ("a@h",)) == Memory({}, ("a@h",))


@pytest.mark.parametrize(
    ("pool_rss", "largest"),
    [((60 * MIB, 300 * MIB), 300 * MIB), ((), 70 * MIB)],
    ids=["pool processes", "calls run in the worker"],
)
def test_levels_are_compared_with_the_process_that_runs_calls(pool_rss, largest):
    """The worker itself counts only where it runs the calls."""
    memory = WorkerMemory.of(answer(pool_rss=pool_rss))
    assert memory.rss_bytes == 70 * MIB
    assert sorted(memory.pool_rss_bytes.values()) == sorted(pool_rss)
    assert memory.largest_bytes == largest
    assert memory.levels["quick"].max_rss == 512 * MIB


@pytest.mark.parametrize("gate", [{}, {"gate": None}, {"gate": {"state": "open", "gauges": {}}}])
def test_a_gate_that_says_nothing_is_open(gate):
    """A worker without a memory guard has none."""
    memory = WorkerMemory.of(answer(**gate))
    assert (memory.gate, memory.whole_bytes, memory.max_worker_rss) == ("open", None, None)


def test_a_closed_gate_says_what_the_whole_worker_takes():
    """As the gate measures it: the worker with its pool processes."""
    gauge = {"used": 900 * MIB, "limit": 800 * MIB, "resume": 700 * MIB}
    gate = {"state": "paused", "gauges": {"max_worker_rss": gauge}}
    memory = Memory.of({"a@h": answer(gate=gate)}).workers["a@h"]
    assert memory.gate == "paused"
    assert (memory.whole_bytes, memory.max_worker_rss) == (900 * MIB, 800 * MIB)


def test_a_worker_without_budgets_of_its_own_has_neither_lanes_nor_memory():
    """Celery registers the command for every worker of a process: its answer has less in it."""
    answers = {"plain@h": {"time_limits": {}, "statistics": []}}
    assert Concurrency.of(answers).total == Slots()
    assert Memory.of(answers).workers["plain@h"].levels == {}
