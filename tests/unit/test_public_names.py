"""The public surface: what a user may import, and that it says what it is."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.metadata import entry_points, version
from importlib.resources import files

import pytest

import celery_budgets


def test_the_public_names():
    """A name more or less is a decision, to be made here too."""
    assert celery_budgets.__all__ == [
        "Budget",
        "BudgetedTask",
        "Budgets",
        "BudgetsError",
        "ConfigurationError",
        "Lane",
        "Lanes",
        "Limit",
        "MemoryLimitExceeded",
        "NoServerError",
        "Outcome",
        "RejectedByBudget",
        "Throttled",
    ]
    assert all(hasattr(celery_budgets, name) for name in celery_budgets.__all__)
    assert celery_budgets.__version__ == version("celery-budgets")


@pytest.mark.parametrize("name", celery_budgets.__all__)
def test_a_public_name_says_what_it_is(name):
    """It has a docstring of its own, and so has everything public on it."""
    thing = getattr(celery_budgets, name)
    assert "__doc__" in vars(thing)
    assert vars(thing)["__doc__"]
    for member, value in vars(thing).items():
        if member.startswith("_") or not (inspect.isroutine(value) or isinstance(value, property)):
            continue
        if any(member in vars(base) for base in thing.__mro__[1:]):
            continue  # documented where it comes from
        assert inspect.getdoc(value), f"{name}.{member}"


def test_types_are_shipped():
    """py.typed stands beside the package's modules."""
    assert files(celery_budgets).joinpath("py.typed").is_file()


def test_the_command_is_registered():
    """`celery lanes` comes through Celery's entry point."""
    (command,) = entry_points(group="celery.commands", name="lanes")
    assert command.load().name == "lanes"


def test_importing_costs_no_telemetry():
    """`import celery_budgets` imports no OpenTelemetry, which a worker without traces never needs.

    In a fresh interpreter: here other tests have imported everything.
    """
    program = (
        "import sys, celery_budgets\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'rich'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
