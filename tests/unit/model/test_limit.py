"""Limits over the fleet, as values."""

from __future__ import annotations

import pytest

from celery_budgets.errors import ConfigurationError
from celery_budgets.model.limit import Limit, Rate


@pytest.mark.parametrize(
    ("text", "interval"), [("10/s", 0.1), ("300/m", 0.2), ("5000/h", 0.72), (" 1.5 / S ", 2 / 3)]
)
def test_a_rate_is_read(text, interval):
    """Calls in a second, a minute or an hour."""
    assert Rate.parse(text).interval == pytest.approx(interval)


@pytest.mark.parametrize(
    ("rate", "burst"), [("10/s", 10), ("300/m", 5), ("5000/h", 1), ("1/h", 1), ("2.5/s", 2)]
)
def test_the_burst_is_that_of_a_second(rate, burst):
    """And at least one call."""
    assert Limit("a", rate=rate).burst == burst
    assert Limit("a", rate=rate, burst=7).burst == 7


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "a b", "concurrency": 1}, "limit 'a b': the name must be letters"),
        ({"name": "a"}, "limits nothing; give it a concurrency, a rate, or both"),
        ({"name": "a", "concurrency": 0}, "concurrency 0 must be a whole number of 1 or more"),
        ({"name": "a", "concurrency": True}, "concurrency True must be a whole number"),
        ({"name": "a", "rate": "10"}, "rate: '10' is no rate; give calls in a second"),
        ({"name": "a", "rate": 10}, "rate: 10 is no rate"),
        ({"name": "a", "rate": "0/s"}, "rate: '0/s' is no rate"),
        ({"name": "a", "concurrency": 1, "burst": 3}, "burst 3 is for a rate, and it has none"),
        ({"name": "a", "concurrency": 1, "key": "a b"}, "key 'a b' must be the name of an arg"),
        ({"name": "a", "concurrency": 1, "on_outage": "x"}, "on_outage 'x' is not one of"),
    ],
)
def test_what_is_wrong_is_told_with_its_remedy(fields, words):
    """By the object, its value and what to write instead."""
    with pytest.raises(ConfigurationError) as caught:
        Limit(**fields)
    assert words in str(caught.value)


def test_all_problems_are_told_at_once():
    """Not the first alone."""
    with pytest.raises(ConfigurationError) as caught:
        Limit("", 0, rate="x")
    assert len(caught.value.problems) == 3
