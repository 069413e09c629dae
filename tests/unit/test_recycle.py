"""When a pool process takes no further call: by its size now, and the size that it began with."""

from __future__ import annotations

import inspect

import pytest
from billiard import pool as billiard_pool

from celery_budgets.budget import Budget
from celery_budgets.process import recycle
from celery_budgets.process.recycle import Recycling, largest_size
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


@pytest.fixture
def process(monkeypatch):
    """Set the size of this process, and the call that ended last."""

    class Released:
        budget, lane = BUDGET, "lane"

    class Dog:
        released = Released

    sizes = {"now": 50 * MIB, "freed": 0}
    monkeypatch.setattr(recycle.memory, "rss", lambda: sizes["now"])
    monkeypatch.setattr(recycle, "watchdog", lambda: Dog)

    def give_back():
        sizes["now"] -= sizes["freed"]

    monkeypatch.setattr(recycle, "_give_back", give_back)
    return sizes


def test_a_process_leaves_above_its_largest_size(process):
    """It answers billiard in KiB: more than the limit, or as good as nothing."""
    ask = Recycling(None, lambda: 0)
    process["now"] = 512 * MIB
    assert ask() == 1
    process["now"] = 513 * MIB
    assert ask() > 513 * KIB - 1


def test_what_can_be_given_back_does_not_count(process):
    """Garbage and freed blocks are returned to the system first."""
    ask = Recycling(None, lambda: 0)
    process |= {"now": 600 * MIB, "freed": 200 * MIB}
    assert ask() == 1


def test_the_programs_own_limit_holds_too(process):
    """worker_max_memory_per_child is in KiB of the peak, as Celery documents it."""
    ask = Recycling(100, lambda: 101)
    assert ask() == 101
    assert Recycling(100, lambda: 100)() == 1
    ask = Recycling(10**9, lambda: 1)
    process["now"] = 600 * MIB
    assert ask() > 10**9


def test_billiard_asks_as_we_answer():
    """Its workloop looks `mem_rss` up in its module after each result, and compares in KiB."""
    source = inspect.getsource(billiard_pool.Worker.workloop)
    asked = source.index("used_kb = mem_rss()")
    assert source.rindex("put((READY", 0, asked) < asked
    assert "used_kb > 0 and used_kb > max_memory_per_child" in source
