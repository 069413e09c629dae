"""Classes that override what BudgetedTask does, or stand beside it: nothing is bypassed."""

from __future__ import annotations

import pickle
from functools import wraps

import pytest
from celery import Celery, Task
from celery.contrib.abortable import AbortableAsyncResult, AbortableTask

from celery_budgets import BudgetedTask, Budgets
from celery_budgets.execution.context import call_of
from celery_budgets.model.headers import HEADER_TERMS
from celery_budgets.sending.results import LaneResult

TERMS = ("tool_call", 300.0, 450.0, None)


class OfFlask(BudgetedTask):
    abstract = True

    def __call__(self, *args, **kwargs):
        self.app.calls.append("override")
        return self.run(*args, **kwargs)


class Cooperative(BudgetedTask):
    abstract = True

    def __call__(self, *args, **kwargs):
        self.app.calls.append("override")
        return super().__call__(*args, **kwargs)


class Twice(Cooperative):
    abstract = True

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class Disguised(BudgetedTask):
    abstract = True

    @wraps(BudgetedTask.__call__)
    def __call__(self, *args, **kwargs):
        self.app.calls.append("override")
        return self.run(*args, **kwargs)


class MixIn:
    def __call__(self, *args, **kwargs):
        self.app.calls.append("override")
        return self.run(*args, **kwargs)


class Silent(MixIn):
    def __init_subclass__(cls, **kwargs):
        """Tell nobody."""


class ContextTask(Task):
    abstract = True

    def __call__(self, *args, **kwargs):
        self.app.calls.append("override")
        return super().__call__(*args, **kwargs)


class MixedBefore(MixIn, BudgetedTask):
    abstract = True


class MixedInSilence(Silent, BudgetedTask):
    abstract = True


class MixedBehind(BudgetedTask, ContextTask):
    abstract = True


class PlainBefore(ContextTask, BudgetedTask):
    abstract = True


class Later(BudgetedTask):
    abstract = True


CLASSES = [
    OfFlask, Cooperative, Twice, Disguised, MixedBefore, MixedInSilence, MixedBehind, PlainBefore,
    Later,
]  # fmt: skip


@pytest.fixture
def app():
    app = Celery("mixed", broker="memory://", backend="cache+memory://", set_as_current=False)
    Budgets(app)
    app.calls = []
    return app


@pytest.fixture
def called(monkeypatch):
    """Every body that was run under a budget."""
    monkeypatch.setattr(Later, "__call__", MixIn.__call__)


def call_that_runs(self):
    return call_of(self.request)


def task_of(app, base, body=call_that_runs):
    app.task(name="tool", base=base, bind=True, shared=False)(body)
    return app.tasks["tool"]


def as_worker(task, *args):
    """Call *task* as Celery's trace does, with what a worker sends along."""
    task.push_request(id="some-id", called_directly=False, **{HEADER_TERMS: TERMS})
    try:
        return task(*args)
    finally:
        task.pop_request()


@pytest.mark.usefixtures("called")
@pytest.mark.parametrize("base", CLASSES)
def test_no_override_of_call_skips_the_budget(app, base):
    """Its own code runs once, and the body is a call."""
    task = task_of(app, base)
    assert as_worker(task) is not None
    assert app.calls == ["override"]


@pytest.mark.usefixtures("called")
@pytest.mark.parametrize("base", [*CLASSES, BudgetedTask])
def test_a_direct_call_stays_plain(app, base):
    """In a program no limits, and what the class has put around the body."""
    task = task_of(app, base)
    assert task() is None
    assert app.calls == (["override"] if base is not BudgetedTask else [])


@pytest.mark.parametrize("base", [BudgetedTask, *CLASSES[:5]])
def test_the_body_may_call_its_own_task(app, base):
    """Inside of the same call: as a part of it."""
    seen = []

    def body(self, depth):
        seen.append(self.request.id)
        return self(depth - 1) if depth else "done"

    task = task_of(app, base, body)
    assert as_worker(task, 2) == "done"
    assert len(seen) == 3


def test_a_call_that_is_assigned_after_the_bind(app):
    """A worker looks again at its start, before it builds what calls the task."""
    task = task_of(app, BudgetedTask)
    type(task).__call__ = MixIn.__call__
    type(task).join_mixins()
    assert as_worker(task) is not None
    assert app.calls == ["override"]


def test_a_guard_inside_of_what_others_put_around_it(app):
    """As Sentry does it to the class of the task when a worker builds its tracer."""
    task = task_of(app, OfFlask)
    inner = type(task).__call__

    @wraps(inner)
    def outer(self, *args, **kwargs):
        app.calls.append("outer")
        return inner(self, *args, **kwargs)

    type(task).__call__ = outer
    type(task).join_mixins()
    assert as_worker(task) is not None
    assert app.calls == ["outer", "override"]


def test_the_app_wide_class(app):
    """Celery(task_cls=...) makes a class of its own from it."""
    app = Celery("wide", broker="memory://", task_cls=OfFlask, set_as_current=False)
    app.calls = []
    Budgets(app)
    app.task(name="tool", bind=True, shared=False)(call_that_runs)
    assert as_worker(app.tasks["tool"]) is not None
    assert app.calls == ["override"]


@pytest.mark.parametrize("base", [BudgetedTask, OfFlask, Cooperative])
def test_an_eager_call_has_one_request(app, base):
    """Mirrors Celery's test_apply_eager_populates_request_task and _simulates_delivery_info."""
    seen = {}

    def body(self):
        seen.update(
            depth=len(self.request_stack), task=self.request.task, id=self.request.id,
            info=self.request.delivery_info, eager=self.request.is_eager,
        )  # fmt: skip

    task = task_of(app, base, body)
    task.apply(task_id="some-id", routing_key="test", priority=4)
    assert (seen["depth"], seen["task"], seen["id"], seen["eager"]) == (1, "tool", "some-id", True)
    assert (seen["info"]["routing_key"], seen["info"]["priority"]) == ("test", 4)


def test_eager_calls_inside_of_each_other(app):
    """Each has a request of its own."""
    seen = []

    def body(self, depth):
        seen.append((self.request.id, len(self.request_stack)))
        if depth:
            self.apply((depth - 1,), task_id=f"id-{depth - 1}").get(disable_sync_subtasks=False)

    task_of(app, BudgetedTask, body).apply((2,), task_id="id-2")
    assert seen == [("id-2", 1), ("id-1", 2), ("id-0", 3)]


class Aborted(BudgetedTask, AbortableTask):
    abstract = True


class AbortedFirst(AbortableTask, BudgetedTask):
    abstract = True


@pytest.mark.parametrize("base", [Aborted, AbortedFirst])
def test_a_result_has_the_features_of_both(app, base):
    """It can be aborted, and it knows its lane."""
    task = task_of(app, base)
    for result in (task.delay(), task.AsyncResult("some-id")):
        assert isinstance(result, LaneResult)
        assert isinstance(result, AbortableAsyncResult)
        assert result.lane() == "tool_call"
        result.abort()
        assert result.is_aborted()
        assert task.is_aborted(task_id=result.id)
        back = pickle.loads(pickle.dumps(result))
        assert type(back) is AbortableAsyncResult
        assert back.id == result.id
    sent = task.apply_async(queue="critic")
    assert sent.lane() == "critic"


class Noticing(Task):
    abstract = True
    from_config = (*Task.from_config, ("flavour", "tool_flavour"))
    flavour = None
    bound = ()

    @classmethod
    def on_bound(cls, app):
        cls.bound = (*cls.bound, cls.name)

    def apply_async(self, args=None, kwargs=None, **options):
        self.app.calls.append(sorted(options.get("headers") or {}))
        return super().apply_async(args, kwargs, **options)


class Noticed(BudgetedTask, Noticing):
    abstract = True


def test_mixins_behind_are_asked_too(app):
    """on_bound, from_config and apply_async of a mix-in behind are not hidden."""
    app.conf.tool_flavour = "sweet"
    task = task_of(app, Noticed)
    assert "tool" in type(task).bound
    assert task.flavour == "sweet"
    assert task.acks_late is True
    task.apply_async(headers={"mine": 1})
    assert len(app.calls) == 1
