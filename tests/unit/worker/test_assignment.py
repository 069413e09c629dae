"""What a worker looks up once for all calls of a task that come from one queue."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery import Celery
from celery.worker.request import create_request_cls

from celery_budgets import BudgetedTask, Budgets, Lane
from celery_budgets.worker import request as request_module
from celery_budgets.worker.assignment import Assignment
from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.request import BudgetedRequest
from celery_budgets.worker.runtime import keep, runtime_of
from tests.benchmarks.memory import Message, Pool


def nothing():
    """What the task does."""


@pytest.fixture
def app():
    app = Celery("places", broker="memory://", backend="disabled", set_as_current=False)
    Budgets(app, lanes=[Lane("quick", 2, timeout=10), Lane("slow", 2, timeout=100)])
    keep(app, SimpleNamespace(roster=Roster(), overrides={}))
    return app


@pytest.fixture
def deliver(app):
    """Return a function that makes deliveries of one task, as its strategy does."""
    app.task(name="tool", base=BudgetedTask, lane="quick")(nothing)
    task = app.tasks["tool"]
    kind = create_request_cls(BudgetedRequest, task, Pool(), "host", None, app=app)

    def delivery(queue="quick", timelimit=(None, None)):
        message = Message("tool")
        message.delivery_info["routing_key"] = queue
        message.headers["timelimit"] = list(timelimit)
        return kind(
            message, app=app, hostname="host", task=task, body=message.body,
            headers=message.headers, decoded=False,
        )  # fmt: skip

    delivery.kind, delivery.task = kind, task
    return delivery


def test_a_place_is_looked_up_once_for_each_queue(deliver, monkeypatch):
    """And each has the limits of its lane."""
    asked = []
    look_up = Assignment.of
    monkeypatch.setattr(Assignment, "of", lambda *of: asked.append(of[-1]) or look_up(*of))
    for _ in range(3):
        assert deliver("quick").limits == (10, 15)
        assert deliver("slow").limits == (100, 150)
    assert asked == ["quick", "slow"]


def test_what_a_call_asks_for_is_its_own(deliver):
    """Celery writes (hard, soft) into a message, and so does any other producer."""
    assert deliver(timelimit=(None, 20)).limits == (20, 30)
    assert deliver(timelimit=("soon", {})).limits == (10, 15)
    assert deliver().limits == (10, 15)


def test_what_an_operator_sets_holds_at_once(app, deliver):
    """`celery control time_limit`: for calls from now on, also of a place that is known."""
    assert deliver().limits == (10, 15)
    runtime_of(app).overrides["tool"] = (5.0, None)
    assert deliver().limits == (5, 7.5)
    del runtime_of(app).overrides["tool"]
    assert deliver().limits == (10, 15)


def test_limits_that_a_program_sets_on_its_task_hold_at_once(deliver):
    """In Celery's words, which `control time_limit` changes too for a task that is not ours."""
    assert deliver().limits == (10, 15)
    deliver.task.soft_time_limit = 4
    assert deliver().limits == (4, 6)


def test_any_number_of_routing_keys_takes_no_more_memory(deliver, monkeypatch):
    """As behind a topic exchange, where each message may have one of its own."""
    monkeypatch.setattr(request_module, "MOST_QUEUES", 3)
    for number in range(10):
        assert deliver(f"user-{number}").lane.name == "quick"
    assert len(deliver.kind._assignments) == 3
