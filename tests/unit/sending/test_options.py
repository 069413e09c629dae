"""What a caller may ask for, and what is written into a message that a call sends."""

from __future__ import annotations

import inspect
import time
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import pytest
from celery import Celery, Task
from kombu import Queue

from celery_budgets import (
    BudgetedTask,
    Budgets,
    ConfigurationError,
    Lane,
    Limit,
    RejectedByBudget,
)
from celery_budgets.execution.call import Call
from celery_budgets.execution.context import note_call, running_call
from celery_budgets.model.budget import TimeLimits
from celery_budgets.model.deadline import Deadline
from celery_budgets.model.outcomes import Outcome
from celery_budgets.sending.options import inherit, options_for, stamp
from celery_budgets.sending.scope import path_here


@pytest.fixture
def app():
    app = Celery("sending", broker="memory://", backend="cache+memory://", set_as_current=False)
    Budgets(app, lanes=[Lane("lane", 2)])
    return app


@pytest.fixture
def task(app):
    @app.task(base=BudgetedTask, name="task", shared=False)
    def task():
        """Do nothing."""

    return task


def seconds(headers):
    return pytest.approx(Deadline(*headers["budgets_deadline"]).left(), abs=0.5)


def test_a_deadline_becomes_a_header(task):
    """Beside those of the caller's, whose options stay as they are."""
    mine = {"deadline": 5, "headers": {"mine": 1}, "countdown": 1}
    options = options_for(task, mine)
    assert mine == {"deadline": 5, "headers": {"mine": 1}, "countdown": 1}
    assert options["countdown"] == options["headers"]["mine"] == 1
    assert "deadline" not in options
    assert seconds(options["headers"]) == (5, 7.5)


def test_none_is_written_down(task):
    """Left out is another thing: then the call inherits."""
    assert options_for(task, {"deadline": None})["headers"] == {"budgets_deadline": None}
    assert "headers" not in options_for(task, {})


def test_a_wrong_one_is_refused(task):
    """Before anything is sent."""
    with pytest.raises(ValueError, match="deadline: 'soon'"):
        task.apply_async(deadline="soon")


def test_it_is_called_as_in_celery(task):
    """A parameter that a new Celery adds has to be passed on."""
    ours, theirs = (
        list(inspect.signature(kind.apply_async).parameters) for kind in (BudgetedTask, Task)
    )
    assert ours == theirs


def test_outside_of_a_call_nothing_is_inherited():
    """But what is asked for by name stands among the properties."""
    headers, properties = {"id": "1"}, {"deadline": 4, "priority": 1}
    inherit(headers, properties)
    assert seconds(headers) == (4, 6)
    assert properties == {"priority": 1}
    inherit(headers := {"id": "1"}, {})
    assert headers == {"id": "1"}


@pytest.fixture
def running(app, task):
    """A call of the task, as it runs in a worker: soft 100 s, hard 150 s, id "parent"."""
    from celery._state import _task_stack

    task.push_request(id="parent", called_directly=False)
    _task_stack.push(task)
    call = Call("parent", "lane", task.budget_in(task.home()), TimeLimits(100, 150))
    note_call(task.request, call)
    yield task.request, call
    _task_stack.pop()
    task.pop_request()


def sent(task_id="child", **headers):
    inherit(headers := {"id": task_id, **headers}, {})
    return headers


def test_a_running_call_passes_on_what_it_has_left(running):
    """The earlier one of it and the message's own; ``None`` opts out."""
    assert seconds(sent()) == (100, 150)
    now = time.time()
    assert seconds(sent(budgets_deadline=[now + 5, now + 500])) == (5, 150)
    assert sent(budgets_deadline=None) == {"id": "child", "budgets_deadline": None}


def test_what_takes_its_place_keeps_what_it_had(running):
    """A retry has the id of the call."""
    request, _ = running
    assert sent("parent") == {"id": "parent"}
    request.budgets_deadline = [time.time() + 20, time.time() + 30]
    assert seconds(sent("parent")) == (20, 30)


def test_when_the_body_has_ended(running):
    """What follows a success has what the call had inherited; a handler of errors nothing."""
    request, call = running
    call.open, call.outcome = False, Outcome.SUCCEEDED
    assert sent() == {"id": "child"}
    request.budgets_deadline = [time.time() + 20, time.time() + 30]
    assert seconds(sent()) == (20, 30)
    call.outcome = Outcome.FAILED
    assert sent() == {"id": "child"}


def test_in_a_block(app, running):
    """It has less than the call around it."""
    with Budgets.of(app).call("lane", timeout=10):
        assert seconds(sent()) == (10, 15)
        assert sent("parent") == {"id": "parent"}
    assert seconds(sent()) == (100, 150)


@pytest.fixture
def eager_inside(running, task):
    """An eager call of the same task, inside the running one."""
    from celery._state import _task_stack

    task.push_request(id="eager", called_directly=False, is_eager=True)
    _task_stack.push(task)
    yield
    _task_stack.pop()
    task.pop_request()


def test_an_eager_call_inside_passes_on_what_the_call_around_it_has(running, eager_inside):
    """Its own request has no deadline and no scope."""
    request, call = running
    request.budgets_scope = "req"
    assert running_call() is call
    assert path_here() == "req"
    assert seconds(sent()) == (100, 150)


def test_a_scope_in_the_body_is_not_that_of_what_takes_the_call_s_place(app, task, running):
    """A retry is not counted there, not refused, and not cut to its time."""
    request, _ = running
    request.budgets_scope = "req"
    with Budgets.of(app).scope("inner", max_calls=0, timeout=1) as scope:
        assert scope.path == "req/inner"
        options_for(task, {"task_id": "parent"})
        headers = {"id": "parent"}
        stamp(headers)
        with pytest.raises(RejectedByBudget):
            options_for(task, {"task_id": "child"})
    assert scope.sent == 0
    assert headers["budgets_scope"] == "req"
    assert "budgets_deadline" not in headers


@pytest.mark.parametrize("name", ["soft_time_limit", "time_limit"])
def test_a_time_limit_of_a_call_may_be_text(app, task, published, name):
    """By apply_async, by a signature, and by name; it leaves as seconds."""
    task.apply_async(**{name: "1m"})
    task.s().set(**{name: "1m"}).apply_async()
    app.send_task("task", **{name: "1m"})
    app.send_task("unknown", **{name: "1m"})
    place = 1 if name.startswith("soft") else 0
    assert [headers["timelimit"][place] for headers in published] == [60.0] * 4


@pytest.mark.parametrize("name", ["soft_time_limit", "time_limit"])
@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("inf"), True, "soon", "", Decimal(3), Fraction(1, 2),
              timedelta(seconds=3), [1], 10**400],
)  # fmt: skip
def test_a_time_limit_that_makes_no_sense_is_refused(app, task, published, name, value):
    """When it is sent: a worker could only drop it."""
    for send in (
        task.apply_async, lambda **kw: task.s().set(**kw).apply_async(),
        partial(app.send_task, "task"), partial(app.send_task, "unknown"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            send(**{name: value})
    assert published == []


@pytest.mark.parametrize("value", [0, 1.5])
def test_a_limit_of_a_task_that_is_none_of_ours_is_sent_as_it_is(app, published, value):
    """By its name, to a queue of plain workers: 0 is no limit there."""
    app.send_task("unknown", queue=Queue("elsewhere"), time_limit=value, soft_time_limit=value)
    assert published[-1]["timelimit"] == [value, value]


@pytest.mark.parametrize("header", [[10**400, 1], [1, 10**400], ["nan", 1], [1], "x", {"a": 1}])
def test_a_header_of_any_kind_is_read(header):
    """As none."""
    assert Deadline.of(header) is None


def test_a_call_that_is_not_published_is_not_counted(app, task):
    """A scope counts what was sent."""
    app.conf.task_publish_retry = False
    with Budgets.of(app).scope("req", max_calls=1) as scope:
        with pytest.raises(Exception, match="nothing"):
            task.apply_async(producer=SimpleNamespace(connection=_Broken()))
        assert scope.sent == 0
        task.delay()
        assert scope.sent == 1
        with pytest.raises(RejectedByBudget):
            task.delay()


class _Broken:
    def _reraise_as_library_errors(self):
        raise OSError("nothing is there")


def test_a_retry_is_not_refused_for_what_its_message_came_with(app, task, running, published):
    """A plain sender may have sent it with limits that make no sense."""
    task.apply_async(task_id="parent", soft_time_limit=0, time_limit="soon")
    assert published[-1]["timelimit"] == [None, None]


@pytest.fixture
def limited():
    app = Celery("limited", broker="memory://", set_as_current=False)
    Budgets(app, lanes=[Lane("lane", 2)], limits=[Limit("api", 5), Limit("tenant", 2, key="who")])

    @app.task(base=BudgetedTask, name="limited", shared=False, limits=["api", "tenant"])
    def limited(who):
        """Do nothing."""

    return limited


def test_keys_and_weights_of_limits_become_headers(limited):
    """Beside the caller's."""
    given = {"limit_keys": {"tenant": 7}, "weight": {"api": 3}, "headers": {"mine": 1}}
    assert options_for(limited, given) == {
        "headers": {
            "mine": 1, "budgets_limit_keys": {"tenant": "7"}, "budgets_weight": {"api": 3},
        }
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"weight": 3}, "weight 3 is above what limit 'tenant' ever grants, its concurrency of 2"),
        ({"weight": {"apy": 1}}, "'apy' is no limit that it names; did you mean 'api'"),
        ({"limit_keys": {"api": "x"}}, "'api' is no limit with keys that it names"),
        ({"limit_keys": "x"}, "must be a mapping of limits to keys"),
    ],
)
def test_what_no_limit_can_hold_is_refused(limited, option, words):
    """Before anything is sent."""
    with pytest.raises(ConfigurationError, match=words):
        limited.apply_async(("acme",), **option)


def test_by_name_they_come_among_the_properties():
    """As Celery passes on what send_task does not know."""
    headers, properties = {"id": "1"}, {"limit_keys": {"tenant": 7}, "weight": 2, "priority": 1}
    inherit(headers, properties)
    assert headers == {"id": "1", "budgets_limit_keys": {"tenant": "7"}, "budgets_weight": 2}
    assert properties == {"priority": 1}
