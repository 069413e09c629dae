"""What a call finds out about the process that runs it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery import Celery

from celery_budgets import BudgetedTask, Budgets
from celery_budgets.execution.context import call_of
from celery_budgets.execution.memory import rss as memory
from celery_budgets.model.headers import HEADER_TERMS
from celery_budgets.tasks.run import SHORTEST


@pytest.fixture
def process(monkeypatch):
    """A process of a size that is set, and a function that runs a call in it."""
    made = SimpleNamespace(size=100, readings=0, now=50.0)

    def rss():
        made.readings += 1
        return made.size

    app = Celery("sizes", broker="memory://", backend="disabled", set_as_current=False)
    Budgets(app)

    def body(seconds, grow):
        made.now += seconds
        made.size += grow

    app.task(name="tool", base=BudgetedTask)(body)
    task = app.tasks["tool"]

    def run(seconds=0.0, grow=0):
        terms = ("tool_call", 300.0, 450.0, None)
        task.push_request(id="some-id", called_directly=False, **{HEADER_TERMS: terms})
        try:
            task(seconds, grow)
            return call_of(task.request)
        finally:
            task.pop_request()

    made.run = run
    memory.forget_recent()
    monkeypatch.setattr(memory, "rss", rss)
    monkeypatch.setattr("celery_budgets.tasks.run.monotonic", lambda: made.now)
    monkeypatch.setattr("celery_budgets.execution.call.monotonic", lambda: made.now)
    yield made
    memory.forget_recent()


def test_short_calls_share_a_reading(process):
    """As a system call is a tenth of what one costs."""
    for _ in range(3):
        call = process.run(SHORTEST / 2)
        assert (call.rss_before, call.rss_after) == (100, 100)
    assert process.readings == 1


def test_a_longer_call_is_read_at_its_end(process):
    call = process.run(2 * SHORTEST, grow=900)
    assert (call.rss_before, call.rss_after, call.rss_peak) == (100, 1000, 1000)


@pytest.mark.parametrize("left", [100, 1000], ids=["freed", "kept"])
def test_a_call_begins_with_the_size_that_the_one_before_has_left(process, left):
    """Not with what that had with its arguments and its result, nor with what was before it."""
    process.run(2 * SHORTEST, grow=900)
    process.size = left
    call = process.run()
    assert (call.rss_before, call.rss_peak) == (left, left)
