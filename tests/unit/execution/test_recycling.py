"""When a pool process takes no further call: by its size now, and the size that it began with."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
from billiard import pool as billiard_pool

from celery_budgets.execution.memory import recycling
from celery_budgets.execution.memory.recycling import Recycling, largest_size
from celery_budgets.model.budget import Budget
from celery_budgets.units import KIB, MIB

BUDGET = Budget(max_rss=512 * MIB, rss_warning=400 * MIB)


@pytest.mark.parametrize(
    ("started", "largest"),
    [
        (50, 512),  # as most processes do
        (400, 512),  # 400 + (512 - 400)
        (500, 612),  # forked from a fat worker: 500 + (512 - 400)
    ],
)
def test_the_largest_size_follows_the_start(started, largest):
    """max_rss, or what the process began with and the room between warning and limit."""
    assert largest_size(BUDGET, started * MIB) == largest * MIB


class Process:
    """A pool process: its size, what of it can be given back, and the call that ended last."""

    def __init__(self):
        self.now, self.freed, self.readings = 50 * MIB, 0, 0
        self.released = None
        self.ends(50 * MIB)

    def ends(self, size):
        """Have a call under the budget end, at *size* bytes."""
        self.now = size
        self.released = SimpleNamespace(budget=BUDGET, lane="lane", rss_after=size)

    def rss(self):
        self.readings += 1
        return self.now

    def give_back(self):
        self.now -= self.freed


@pytest.fixture
def process(monkeypatch):
    """Stand in for this process and its watchdog."""
    process = Process()
    monkeypatch.setattr(recycling.memory, "rss", process.rss)
    monkeypatch.setattr(recycling, "watchdog", lambda: process)
    monkeypatch.setattr(recycling, "_give_back", process.give_back)
    return process


def test_a_process_leaves_above_its_largest_size(process):
    """It answers billiard in KiB: more than the limit, or as good as nothing."""
    ask = Recycling(None, lambda: 0)
    process.ends(512 * MIB)
    assert ask() == 1
    process.ends(513 * MIB)
    assert ask() > 513 * KIB - 1


def test_what_can_be_given_back_does_not_count(process):
    """Garbage and freed blocks are returned to the system first."""
    ask = Recycling(None, lambda: 0)
    process.freed = 200 * MIB
    process.ends(600 * MIB)
    assert ask() == 1


def test_the_programs_own_limit_holds_too(process):
    """worker_max_memory_per_child is in KiB of the peak, as Celery documents it."""
    ask = Recycling(100, lambda: 101)
    assert ask() == 101
    assert Recycling(100, lambda: 100)() == 1
    ask = Recycling(10**9, lambda: 1)
    process.ends(600 * MIB)
    assert ask() > 10**9


def test_its_size_is_read_anew_only_after_a_plain_task(process):
    """A call under a budget has read its size when it ended; a plain task has not."""
    ask = Recycling(None, lambda: 0)
    process.ends(60 * MIB)
    process.readings = 0
    assert ask() == 1
    assert process.readings == 0
    process.now = 600 * MIB
    assert ask() > 600 * KIB - 1


def test_billiard_asks_as_we_answer():
    """Its workloop looks `mem_rss` up in its module after each result, and compares in KiB."""
    source = inspect.getsource(billiard_pool.Worker.workloop)
    asked = source.index("used_kb = mem_rss()")
    assert source.rindex("put((READY", 0, asked) < asked
    assert "used_kb > 0 and used_kb > max_memory_per_child" in source
