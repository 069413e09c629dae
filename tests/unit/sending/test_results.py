"""Results that know their lane: what they are to Celery, and when a wait is noted."""

from __future__ import annotations

import pickle
from copy import copy

import pytest
from celery import Celery, group
from celery._state import _task_stack
from celery.result import AsyncResult, GroupResult

from celery_budgets import BudgetedTask, Budgets, Lane
from celery_budgets.execution.call import Call
from celery_budgets.execution.context import note_call
from celery_budgets.execution.flight.recorder import recorder
from celery_budgets.model.budget import Budget, TimeLimits
from celery_budgets.sending.results import LaneResult, group_result


@pytest.fixture
def app():
    made = Celery("waiting", broker="memory://", backend="cache+memory://")
    made.conf.task_routes = {"routed": {"queue": "b"}}
    Budgets(made, lanes=[Lane("a", 1), Lane("b", 1)])
    yield made
    made.close()


@pytest.fixture
def task(app):
    @app.task(base=BudgetedTask, lane="a", name="tool")
    def tool():
        """Do nothing."""

    return tool


@pytest.fixture
def call(task):
    """A call of *task* that runs in this thread."""
    made = Call("waits", "a", Budget(), TimeLimits(60, 90))
    task.push_request(id="waits", called_directly=False)
    _task_stack.push(task)
    note_call(task.request, made)
    yield made
    _task_stack.pop()
    task.pop_request()


@pytest.fixture
def waiting(monkeypatch):
    """Calls that were noted as waiting while a result was waited for."""
    seen = []

    def get(self, *_args, **_kwargs):
        seen.append(set(recorder().waiting))
        return 42

    monkeypatch.setattr(AsyncResult, "get", get)
    monkeypatch.setattr(GroupResult, "join_native", get)
    return seen


def test_it_is_an_asyncresult(app, task):
    """Equal, copied and pickled as one; a reader without this package gets Celery's own."""
    result = task.apply_async()
    assert isinstance(result, LaneResult)
    assert result == app.AsyncResult(result.id)
    assert copy(result) == result
    app.set_current()
    back = pickle.loads(pickle.dumps(result))
    assert back == result
    assert type(back) is app.AsyncResult


def test_it_knows_its_lane(app, task):
    """That of the queue which the call names, of the program's routes, of the task."""

    @app.task(base=BudgetedTask, name="routed")
    def routed():
        """Do nothing."""

    assert task.apply_async().lane() == "a"
    assert task.apply_async(queue="b").lane() == "b"
    assert routed.apply_async().lane() == "b"
    assert LaneResult("id", app=app).lane() is None


def test_a_wait_for_the_own_lane_is_noted(task, call, waiting):
    """While it lasts, also where it fails; not that for another lane."""
    assert task.apply_async().get() == 42
    assert task.apply_async(queue="b").get() == 42
    assert waiting == [{"waits"}, set()]
    assert recorder().waiting == set()


def test_a_wait_outside_of_a_call_is_not(task, waiting):
    """In the program that sends, there is nobody to warn."""
    assert task.apply_async().get() == 42
    assert waiting == [set()]


def test_a_wait_for_a_group_is_noted_where_one_of_it_is_of_the_lane(app, task, call, waiting):
    """Redis waits for the whole group at once, past the results in it."""
    groups = app.GroupResult
    groups("g", [task.apply_async(queue="b"), task.apply_async()]).join_native()
    groups("g", [task.apply_async(queue="b")]).join_native()
    assert waiting == [{"waits"}, set()]


def test_a_group_result_stays_celerys(app, task):
    """By its name and its pickle; a second Budgets adds nothing."""
    made = group(task.s(), task.s()).apply_async()
    assert isinstance(made, GroupResult)
    assert type(made).__name__ == "GroupResult"
    assert group_result(app) is app.GroupResult
    app.set_current()
    assert pickle.loads(pickle.dumps(made)) == made
