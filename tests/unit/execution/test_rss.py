"""The size of this process, read anew or a moment ago."""

from __future__ import annotations

import math
import multiprocessing

import pytest

from celery_budgets.execution.memory import rss as memory
from celery_budgets.units import MIB


@pytest.fixture
def sizes(monkeypatch):
    """What readings give, one after the other."""
    given = iter(range(100, 1000, 100))
    monkeypatch.setattr(memory, "rss", lambda: next(given))
    monkeypatch.setattr(memory, "_last", (-math.inf, 0))


def test_a_reading_is_used_again_while_it_is_recent(sizes):
    assert memory.recent_rss(10.0, 0.005) == 100
    assert memory.recent_rss(10.004, 0.005) == 100
    assert memory.recent_rss(10.006, 0.005) == 200, "the age counts from the reading"


def test_a_reading_can_be_asked_for(sizes):
    """And is what is recent from then on."""
    assert memory.recent_rss(10.0, 0.005) == 100
    assert memory.recent_rss(10.001, 0.0) == 200
    assert memory.recent_rss(10.002, 0.005) == 200


def _size_in_child(at, answer):
    answer.send(memory.recent_rss(at, math.inf) // MIB)


def test_a_forked_process_does_not_take_its_parents_size(monkeypatch):
    """It shares the pages of its parent, and has mapped few of them itself."""
    monkeypatch.setattr(memory, "_last", (10.0, 123_456 * MIB))
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_size_in_child, args=(10.0, there))
    child.start()
    assert here.recv() < 10_000
    child.join(30)


def test_what_was_read_can_be_forgotten(sizes):
    """As after a call that may give memory back: the next one begins with a size of its own."""
    assert memory.recent_rss(10.0, 0.005) == 100
    memory.forget_recent()
    assert memory.recent_rss(10.001, 0.005) == 200
