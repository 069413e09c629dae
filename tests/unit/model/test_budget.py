"""Budgets: what one call may spend, and how a call's own wishes fit into it."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_budgets import Budget, ConfigurationError
from celery_budgets.model.budget import TimeLimits
from celery_budgets.units import scaled

MIB = 1024**2


def test_the_default_budget():
    """300 s soft, 450 s hard; 512 MiB with a warning at 400 MiB, killed at 768 MiB."""
    budget = Budget()
    assert (budget.soft_time_limit, budget.hard_time_limit) == (300.0, 450.0)  # 300 x 1.5
    assert (budget.rss_warning, budget.max_rss) == (400 * MIB, 512 * MIB)
    assert budget.hard_rss == 768 * MIB  # 512 x 1.5
    assert (budget.soft, budget.memory) == ("raise", "warn")


def test_text_becomes_base_units():
    """Fields hold seconds and bytes, whatever they were written as."""
    budget = Budget(timeout="10m", hard_timeout="1h", max_rss="1GiB", rss_warning=900_000_000.0)
    assert (budget.timeout, budget.hard_timeout) == (600.0, 3600.0)
    assert (budget.max_rss, budget.rss_warning) == (1024 * MIB, 900_000_000)


def test_a_budget_is_a_value():
    """Equal by its facts, hashable, and not to be changed."""
    assert Budget(timeout="5m") == Budget(timeout=300) == Budget()
    assert hash(Budget(timeout="5m")) == hash(Budget())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Budget().timeout = 1.0


def test_everything_wrong_is_said_at_once():
    """One error has a message for each wrong field."""
    with pytest.raises(ConfigurationError) as caught:
        Budget(timeout=-1, max_rss="many", soft="stop", escalation_factor=True)
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "timeout",
        "escalation_factor",
        "max_rss",
        "soft",
    ]


@pytest.mark.parametrize(
    ("fields", "asked", "expected"),
    [
        # Nothing asked for: the budget's own pair, also where a ceiling is lower.
        ({}, {}, (300, 450)),  # 300 x 1.5
        ({}, {"ceiling": 60}, (300, 450)),
        ({"timeout": 4, "escalation_factor": 2}, {}, (4, 8)),  # 4 x 2
        ({"timeout": 4, "hard_timeout": 5}, {}, (4, 5)),
        # A soft limit takes the hard one along.
        ({}, {"soft": 10}, (10, 15)),  # 10 x 1.5
        ({}, {"soft": 600}, (600, 900)),  # 600 x 1.5
        ({"hard_timeout": 10_000}, {"soft": 10}, (10, 15)),
        # A hard limit alone: the soft one stays where it is below ...
        ({}, {"hard": 400}, (300, 400)),
        ({}, {"hard": 900}, (300, 900)),
        # ... and moves below where it is not (celery arms one timer, at the soft limit).
        ({}, {"hard": 300}, (200, 300)),  # 300 / 1.5
        ({}, {"hard": 30}, (20, 30)),  # 30 / 1.5
        # Both in the right order are taken as they are, in the wrong order the hard one is.
        ({}, {"soft": 10, "hard": 11}, (10, 11)),
        ({}, {"soft": 10, "hard": 10}, (10 / 1.5, 10)),
        ({}, {"soft": 60, "hard": 30}, (20, 30)),  # 30 / 1.5
        # Up to the ceiling, the lane's own before the broker's.
        ({"max_timeout": 600}, {"soft": 1000}, (600, 900)),  # 600 x 1.5
        ({"max_timeout": 600}, {"soft": 1000, "ceiling": 2000}, (600, 900)),
        ({}, {"soft": 1000, "ceiling": 2000}, (1000, 1500)),  # 1000 x 1.5
        ({}, {"soft": 3000, "ceiling": 2000}, (2000, 3000)),  # 2000 x 1.5
        ({"max_timeout": 600}, {"hard": 1000}, (300, 900)),  # hard at most 600 x 1.5
        ({"max_timeout": 600}, {"soft": 700, "hard": 100_000}, (600, 900)),
        # A hard limit of the budget's own may be higher than that.
        ({"max_timeout": 600, "hard_timeout": 2000}, {"hard": 5000}, (300, 2000)),
        # A ceiling below the budget's own limits does not lower those.
        ({}, {"soft": 500, "ceiling": 60}, (300, 450)),
    ],
)
def test_the_limits_of_one_call(fields, asked, expected):
    """The pair is complete, ordered, and no higher than the ceiling allows."""
    assert Budget(**fields).time_limits(**asked) == pytest.approx(TimeLimits(*expected))


SECONDS = st.floats(1e-3, 1e7)


@given(
    timeout=SECONDS,
    factor=st.floats(1.01, 10),
    stretch=st.none() | st.floats(1.01, 10),
    headroom=st.none() | st.floats(1, 10),
    soft=st.none() | SECONDS,
    hard=st.none() | SECONDS,
    ceiling=st.none() | SECONDS,
)
def test_limits_are_always_ordered_and_bounded(
    timeout, factor, stretch, headroom, soft, hard, ceiling
):
    """0 < soft < hard, and neither is above both its ceiling and the budget's own limit."""
    budget = Budget(
        timeout=timeout,
        escalation_factor=factor,
        hard_timeout=None if stretch is None else timeout * stretch,
        max_timeout=None if headroom is None else timeout * headroom,
    )
    limits = budget.time_limits(soft=soft, hard=hard, ceiling=ceiling)
    assert 0 < limits.soft < limits.hard < math.inf
    top = budget.max_timeout or ceiling or math.inf
    assert limits.soft <= max(top, budget.soft_time_limit)
    assert limits.hard <= max(scaled(top, factor), budget.hard_time_limit)
    if soft is not None and (hard is None or soft < hard):
        assert limits.soft <= soft or limits.soft == budget.soft_time_limit
    if hard is not None:
        assert limits.hard <= hard


@pytest.mark.parametrize("field", ["timeout", "hard_timeout", "max_timeout"])
@pytest.mark.parametrize("value", [0, -1, "0s", math.nan, math.inf, True, "soon"])
def test_durations_that_are_none(field, value):
    """A duration is a finite number of seconds above 0; 0 is no way to say "no limit"."""
    with pytest.raises(ConfigurationError, match=f"budget: {field}: "):
        Budget(**{field: value})


def test_changes_are_checked_anew():
    """over() names the subject of the problem, not the budget below."""
    with pytest.raises(
        ConfigurationError,
        match=r"^task 'slow': timeout \(90 s, soft\) must be below hard_timeout \(60 s\); raise",
    ):
        Budget().over("task 'slow'", {"timeout": 90, "hard_timeout": 60})


def test_what_belongs_together_moves_together():
    """A changed timeout takes the hard limit along, a changed max_rss its warning."""
    base = Budget(timeout=10, hard_timeout=100, max_rss=1000, rss_warning=600)
    changed = base.over("lane 'x'", {"timeout": 40, "max_rss": 500})
    assert changed.hard_time_limit == 60  # 40 x 1.5, not the 100 of the other timeout
    assert changed.rss_warning == 300  # 500 x 600 / 1000
    assert base.over("lane 'x'", {"timeout": 40, "hard_timeout": 50}).hard_time_limit == 50
    assert base.over("lane 'x'", {"max_rss": 700, "rss_warning": 10}).rss_warning == 10


def test_no_change_changes_nothing():
    """over() of nothing is the same budget."""
    budget = Budget(timeout=10, hard_timeout=100, max_timeout=20, soft="warn", memory="raise")
    assert budget.over("lane 'x'", {}) == budget
