"""Errors: their kinship, and that they arrive whole where they are sent."""

from __future__ import annotations

import pickle
from uuid import uuid4

import click
import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_budgets import (
    BudgetsError,
    ConfigurationError,
    MemoryLimitExceeded,
    NoServerError,
    RejectedByBudget,
)
from celery_budgets.errors import nearest
from celery_budgets.worker.startup.refused import WorkerRefused

MIB = 1024**2
CROSSING = [
    MemoryLimitExceeded(600 * MIB, 512 * MIB),
    MemoryLimitExceeded(600 * MIB),
    RejectedByBudget("memory", "critic"),
    RejectedByBudget("memory"),
]


def facts(error):
    return {name: value for name, value in vars(error).items() if not name.startswith("_")}


@pytest.mark.parametrize("error", CROSSING, ids=repr)
def test_it_crosses_the_pool(error):
    """Pickled on the way out of a pool process, it is the same error on the other side."""
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert (back.args, facts(back), str(back)) == (error.args, facts(error), str(error))


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("error", CROSSING, ids=repr)
def test_it_crosses_the_result_backend(error, serializer):
    """Stored as Celery stores it, the caller raises the same error with the same facts."""
    app = Celery("errors", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.result_serializer = serializer
    app.conf.accept_content = [serializer]
    task_id = uuid4().hex
    app.backend.mark_as_failure(task_id, error)
    back = app.AsyncResult(task_id).result
    assert type(back) is type(error)
    assert (facts(back), str(back)) == (facts(error), str(error))


@pytest.mark.parametrize(
    "error", [ConfigurationError("a", "b"), ConfigurationError("a"), WorkerRefused("a", "b")]
)
def test_a_configuration_error_is_pickled_with_all_its_problems(error):
    """It may be raised in a pool process, by a task that asks for its settings."""
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.problems, str(back)) == (type(error), error.problems, str(error))


def test_messages():
    """What people read: sizes with units, one problem plainly, several as a list."""
    assert str(CROSSING[0]) == "memory limit exceeded: 600 MiB RSS, limit 512 MiB"
    assert str(CROSSING[1]) == "out of memory: MemoryError in the call at 600 MiB RSS"
    assert str(CROSSING[2]) == "rejected by lane 'critic': memory"
    assert str(CROSSING[3]) == "rejected: memory"
    assert str(ConfigurationError("one")) == "one"
    assert str(ConfigurationError("one", "two")) == (
        "2 problems in the configuration:\n  - one\n  - two"
    )


def test_kinship():
    """All are BudgetsErrors, and what Celery and click catch by their own names."""
    for kind in (ConfigurationError, MemoryLimitExceeded, NoServerError, RejectedByBudget):
        assert issubclass(kind, BudgetsError)
    assert issubclass(ConfigurationError, ImproperlyConfigured)
    assert issubclass(WorkerRefused, ConfigurationError)
    assert not issubclass(BudgetsError, click.ClickException)


@pytest.mark.parametrize("problems", [("no such queue",), ("no such queue", "too many slots")])
def test_a_refused_worker_is_one_message_and_exit_code_1(problems, capsys):
    """Click prints it without a traceback, also where there are several reasons."""

    @click.command()
    def worker():
        raise WorkerRefused(*problems)

    with pytest.raises(SystemExit) as caught:
        worker.main([])
    assert caught.value.code == 1
    printed = capsys.readouterr().err
    assert printed == f"Error: {WorkerRefused(*problems)}\n"
    assert all(problem in printed for problem in problems)


def test_nothing_wrong_raises_nothing():
    """raise_if of no problems goes on."""
    ConfigurationError.raise_if(problem for problem in ())
    with pytest.raises(ConfigurationError, match=r"^a$"):
        ConfigurationError.raise_if(problem for problem in ["a"])


@pytest.mark.parametrize(
    ("name", "known", "remedy"),
    [
        ("critics", ["critic", "bulk"], "did you mean 'critic'? known: bulk, critic"),
        ("zzz", ["critic"], "known: critic"),
        ("zzz", [], "known: none"),
        (5, ["5", "6"], "did you mean '5'? known: 5, 6"),
    ],
)
def test_the_remedy_for_an_unknown_name(name, known, remedy):
    """The nearest name, where one is near, and all of them."""
    assert nearest(name, known) == remedy
