"""What a user sees who prints what this package hands out: values, and no addresses."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

import celery_budgets
from celery_budgets import Budget, BudgetedTask, Budgets, Lane, MemoryLimitExceeded, Outcome
from celery_budgets.batch.items import BatchItem, BatchSummary
from celery_budgets.batch.progress import Progress
from celery_budgets.telemetry.histogram import Histogram
from celery_budgets.telemetry.snapshots import Concurrency, Memory, WorkerMemory
from celery_budgets.telemetry.statistics import CallStatistics, Statistics
from celery_budgets.units import scaled
from tests.support.answers import answer, ended

PASSWORD = "hunter2"


def values() -> dict[str, Any]:
    app = Celery("shown", set_as_current=False, broker=f"redis://:{PASSWORD}@localhost/0")
    app.conf.budgets_idempotency_url = f"redis://:{PASSWORD}@localhost/1"
    budgets = Budgets(app)

    @app.task(base=BudgetedTask, name="some")
    def some() -> None: ...

    statistics = ended("critic", 0.1 + 0.2, succeeded=2, failed=1)
    answers = {"a@h": answer(calls=statistics)}
    return {
        "settings": budgets.settings,
        "lanes": budgets.settings.lanes,
        "lane": Lane("some", 1),
        "budget": Budget(),
        "limits": Budget().time_limits(hard=0.3),
        "outcome": Outcome.FAILED,
        "scope": budgets.scope("some"),
        "call": some.budget,
        "result": some.AsyncResult("id"),
        "group": app.GroupResult("id", [some.AsyncResult("id")]),
        "statistics": statistics,
        "no statistics": Statistics(["a@h"]),
        "calls": statistics.total,
        "no calls": CallStatistics(),
        "histogram": statistics.total.duration,
        "empty histogram": Histogram(),
        "concurrency": Concurrency.of(answers),
        "memory": Memory.of(answers, ("b@h",)),
        "worker memory": WorkerMemory.of(answer()),
        "item": BatchItem(0, "some", "id", 1),
        "summary": BatchSummary(1, 1),
        "progress": Progress(1, 1, 1, 1),
        "too large": MemoryLimitExceeded(3 * 2**20, 2**20),
        "rejected": celery_budgets.RejectedByBudget("deadline", "critic"),
        "wrong": celery_budgets.ConfigurationError("one", "another"),
    }


@pytest.mark.parametrize("name", values())
def test_what_is_handed_out_can_be_printed(name):
    """Its facts, no address of an object, no noise of binary fractions, and no password."""
    value = values()[name]
    for text in (repr(value), str(value)):
        assert text
        assert " at 0x" not in text
        assert PASSWORD not in text
        assert "00000000" not in text
        assert "99999999" not in text


def test_statistics_say_what_they_add_up_to():
    """By lane and outcome; percentiles for people."""
    statistics = ended("critic", 0.25, succeeded=2, failed=1)
    assert repr(statistics) == "<Statistics {critic: {'succeeded': 2, 'failed': 1}} silent=[]>"
    assert repr(statistics.total.duration) == (
        "<Histogram count=3 mean=0.25 p50=0.25 p95=0.25 max=0.25>"
    )
    assert "duration=<Histogram count=3 " in repr(statistics.total)
    assert repr(Histogram()) == "<Histogram count=0>"


@pytest.mark.parametrize(
    ("seconds", "factor", "expected"),
    [
        (0.3, 1 / 1.5, 0.2),
        (0.1, 1.5, 0.15),
        (1.1, 1.5, 1.65),
        (300.0, 1.5, 450.0),
        (2.0, 1 / 3, 0.666667),
        (1e-7, 1.5, 1e-7 * 1.5),
        (float("inf"), 1.5, float("inf")),
    ],
)
def test_a_multiple_of_seconds_is_what_people_work_out(seconds, factor, expected):
    """In microseconds."""
    assert scaled(seconds, factor) == expected


@pytest.mark.parametrize("seconds", [1e-9, 0.1, 0.12345678901234567, 300.0, 1e9])
@pytest.mark.parametrize("factor", [1 + 1e-9, 1.5, 1000.0])
def test_rounding_never_puts_a_hard_limit_below_its_soft_one(seconds, factor):
    """Whatever the factor."""
    assert scaled(seconds, factor) > seconds > scaled(seconds, 1 / factor)
    limits = Budget(escalation_factor=factor).time_limits(hard=seconds)
    assert limits.soft < limits.hard == seconds
