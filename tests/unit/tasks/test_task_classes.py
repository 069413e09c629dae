"""Classes of the program's that would take calls past their budget are refused, everywhere."""

from __future__ import annotations

import pytest
from celery import Celery, Task
from celery.worker.request import Request
from click.testing import CliRunner

from celery_budgets import BudgetedTask, Budgets, ConfigurationError, Lane
from celery_budgets.worker.request import BudgetedRequest
from celery_budgets.worker.request_classes import composed


class Batches(Task):
    """As celery_batches.Batches."""

    abstract = True

    def Strategy(self, task, app, consumer):  # noqa: N802  Celery's name
        return None


class Starting(BudgetedTask):
    abstract = True

    def start_strategy(self, app, consumer, **kwargs):
        return None


def body():
    """Nothing."""


@pytest.fixture
def app():
    with Celery("classes", broker="memory://", set_as_current=False) as app:
        Budgets(app, lanes=[Lane("lane", 1)])
        yield app


@pytest.mark.parametrize(
    "options",
    [
        {"base": BudgetedTask, "Strategy": "celery_batches:Strategy"},
        {"base": type("First", (Batches, BudgetedTask), {"abstract": True})},
        {"base": type("Last", (BudgetedTask, Batches), {"abstract": True})},
        {"base": Starting},
    ],
)
def test_a_strategy_of_the_tasks_own_is_refused_at_the_bind(app, options):
    """Also one that another base class hides: its body expects what that strategy makes."""
    with pytest.raises(ConfigurationError, match=r"task 'tool':.*make it a plain task"):
        app.task(name="tool", shared=False, lazy=False, **options)(body)


@pytest.mark.parametrize("strategy", [Task.Strategy, BudgetedTask.Strategy])
def test_the_strategy_of_celery_is_no_strategy_of_its_own(app, strategy):
    @app.task(base=BudgetedTask, name="tool", shared=False, Strategy=strategy)
    def tool():
        pass

    app.finalize()
    assert app.tasks["tool"].Strategy == BudgetedTask.Strategy


@pytest.mark.parametrize(
    ("request_class", "words"),
    [
        ("no.such:Class", "cannot be imported"),
        (dict, "is no subclass"),
        (type("Meta", (type,), {})("Other", (), {}), "is no subclass"),
    ],
)
def test_a_request_class_that_cannot_be_used_is_refused(request_class, words):
    with pytest.raises(ConfigurationError, match=words):
        composed("tool", request_class)


def test_classes_that_cannot_be_one_are_refused():
    class Sealed(Request):
        """One that lets nobody stand beside it."""

        def mro_is_wrong(self):
            """Nothing."""

    class Meta(type):
        def __new__(cls, name, bases, namespace, **kwargs):
            if len(bases) > 1:
                raise TypeError("one base class at most")
            return super().__new__(cls, name, bases, namespace, **kwargs)

    class Strict(Request, metaclass=Meta):
        """Refuses a second base class."""

    assert issubclass(composed("tool", Sealed), Sealed)
    with pytest.raises(ConfigurationError, match="derive it from"):
        composed("tool", Strict)


def test_a_request_class_is_made_one_with_ours_once():
    class Mine(Request):
        """The program's."""

    class Derived(BudgetedRequest):
        """Of this package's."""

    both = composed("tool", Mine)
    assert issubclass(both, Mine)
    assert issubclass(both, BudgetedRequest)
    assert composed("other", Mine) is both
    assert composed("tool", both) is both
    assert composed("tool", Derived) is Derived
    assert composed("tool", Request) is BudgetedRequest
    assert composed("tool", BudgetedTask.Request) is BudgetedRequest


def test_lanes_check_says_which_request_class_cannot_be_used(app):
    from celery_budgets.cli.check import command

    @app.task(base=BudgetedTask, name="tool", shared=False, Request="no.such:Class")
    def tool():
        pass

    from celery.bin.base import CLIContext

    context = CLIContext(app=app, no_color=True, workdir=None)
    result = CliRunner().invoke(command, ["--no-broker"], obj=context)
    assert result.exit_code == 1
    assert "task 'tool': Request 'no.such:Class' cannot be imported" in result.output
