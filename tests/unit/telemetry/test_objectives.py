"""The share of calls that start within the wait that is promised."""

from __future__ import annotations

import pytest

from celery_budgets.telemetry.objectives import Objective, ObjectiveCounts


class Clock:
    """Monotonic seconds that a test sets."""

    now = 1_000_000.0

    def __call__(self):
        return self.now


def test_calls_count_by_what_they_waited():
    """Exactly what is promised is within."""
    counts = ObjectiveCounts(5.0, Clock())
    for waited in (0.0, 5.0, 5.1):
        counts.count(waited)
    assert (counts.within, counts.late) == (2, 1)
    assert counts.to_json() == {"seconds": 5.0, "hour": [2, 1], "day": [2, 1]}


def test_an_hour_and_a_day_are_forgotten():
    """One call a minute, the first 90 minutes late: two hours later, and a day later."""
    clock = Clock()
    counts = ObjectiveCounts(5.0, clock)
    for minute in range(180):
        counts.count(9.0 if minute < 90 else 1.0)
        clock.now += 60
    # The minute that has begun has no calls yet: 59 of the last 60 have.
    assert counts.to_json() == {"seconds": 5.0, "hour": [59, 0], "day": [90, 90]}
    clock.now += 86400 - 60 * 60
    assert counts.to_json()["day"] == [59, 0]
    clock.now += 86400
    assert counts.to_json()["day"] == [0, 0]
    assert (counts.within, counts.late) == (90, 90)


def test_many_calls_take_little_room():
    """One entry for each minute of a day."""
    clock = Clock()
    counts = ObjectiveCounts(5.0, clock)
    for _ in range(3000):
        counts.count(1.0)
        counts.count(9.0)
        clock.now += 60
    assert len(counts._minutes) <= 24 * 60
    assert counts.to_json()["hour"] == [59, 59]


def test_shares_are_of_all_workers():
    """90 of 100 and 0 of 100: 45 %; a worker of an earlier version tells nothing."""
    one = {"seconds": 5.0, "hour": [90, 10], "day": [0, 0]}
    other = {"seconds": 5.0, "hour": [0, 100], "day": [0, 0]}
    assert Objective.of([one, {}, other]) == Objective(5.0, pytest.approx(0.45), None)
    assert Objective.of([{}, None]) is None
