"""Threads that open their first block at once: one table of slots, one ledger, one reading."""

from __future__ import annotations

import threading
import time

import pytest

from celery_budgets import Lane, RejectedByBudget
from celery_budgets.blocks import ledger
from celery_budgets.blocks.process_slots import process_slots
from celery_budgets.config import settings

THREADS = 8


@pytest.fixture
def block_lanes():
    return [Lane("lane", 3), Lane("one", 1)]


def at_once(run):
    """Run *run* in some threads that start together; return what they have returned."""
    start, returned = threading.Barrier(THREADS), []

    def go():
        start.wait(10)
        returned.append(run())

    threads = [threading.Thread(target=go) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(returned) == THREADS
    return returned


@pytest.fixture
def _slow_reading(monkeypatch):
    """Let each thread begin to read before another has read, as a slow configuration does."""
    read = settings.Settings.of

    def slowly(app, lanes=None, limits=None):
        time.sleep(0.1)
        return read(app, lanes)

    monkeypatch.setattr(settings.Settings, "of", slowly)


@pytest.mark.usefixtures("_slow_reading")
def test_the_first_blocks_have_the_slots_of_one_table(budgets):
    """No more than the lane has, although nobody has read the settings before."""
    most, lock, is_open = [], threading.Lock(), set()

    def run():
        try:
            with budgets.call("lane") as call:
                with lock:
                    is_open.add(call)
                    most.append(len(is_open))
                time.sleep(0.5)
                with lock:
                    is_open.discard(call)
        except RejectedByBudget:
            return "rejected"
        return "ran"

    ended = at_once(run)
    assert max(most) <= 3
    assert ended.count("ran") == 3
    assert dict(budgets.local_statistics().total.outcomes) == {"succeeded": 3, "rejected": 5}


@pytest.mark.usefixtures("_slow_reading")
def test_the_settings_are_one_object(budgets):
    """Whoever reads them at the same time."""
    assert len({id(read) for read in at_once(lambda: settings.settings_of(budgets.app))}) == 1


def test_what_was_read_before_a_change_is_not_held(budgets, monkeypatch):
    """A change while they are read: they are read again, and never None."""
    settings.settings_of(budgets.app)  # the configuration itself is loaded, which reads too
    settings.reread(budgets.app)
    read, times = settings.Settings.of, []

    def changed_meanwhile(app, lanes=None, limits=None):
        found = read(app, lanes)
        times.append(found)
        if len(times) == 1:
            settings.reread(app)
        return found

    monkeypatch.setattr(settings.Settings, "of", changed_meanwhile)
    assert settings.settings_of(budgets.app) is times[1]
    assert settings.settings_of(budgets.app) is times[1]


def test_the_ledger_is_one_object(budgets, monkeypatch):
    """What a second one counted would be seen nowhere."""
    made = ledger.Ledger

    def slowly():
        time.sleep(0.05)
        return made()

    monkeypatch.setattr(ledger, "Ledger", slowly)
    assert len({id(one) for one in at_once(lambda: ledger.ledger_of(budgets.app))}) == 1


def test_slots_that_are_taken_count_on_when_settings_are_read_anew(budgets):
    """A new table, with a lane more and another limit, has them."""
    with budgets.call("one"), budgets.call("lane"):
        settings.declare(budgets.app, [Lane("lane", 1), Lane("one", 2), Lane("new", 1)])
        with pytest.raises(RejectedByBudget), budgets.call("lane"):
            raise AssertionError("it ran")
        with budgets.call("one"), budgets.call("new"):
            slots = process_slots(budgets.app, budgets.settings.lanes)
            assert {lane: slots.active(lane) for lane in slots.limits} == {
                "lane": 1, "one": 2, "new": 1,
            }  # fmt: skip
    assert slots.active() == 0
