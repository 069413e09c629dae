"""What a worker that stops does with a call: by its age, its task's history and its limits."""

from __future__ import annotations

import pytest

from celery_budgets.model.workers.drain import RunningCall, Verdict, decide, rest
from celery_budgets.telemetry.histogram import Histogram

WAIT, BACK, LEAVE = Verdict.WAIT, Verdict.HAND_BACK, Verdict.LEAVE
#: 90 calls of a second and 10 of 100 s.
MIXED = [1.0] * 90 + [100.0] * 10


def history(seconds):
    made = Histogram()
    for each in seconds:
        made.add(each)
    return made


def call(age, soft_left=300.0, hard_left=450.0, again=True, ended=False):
    return RunningCall(age, soft_left, hard_left, again, ended)


@pytest.mark.parametrize(
    ("running", "seconds", "left", "cutoff", "verdict", "chance"),
    [
        # By its history: nine of ten end within a second, and what has not ends after 100 s.
        (call(0.5), MIXED, 30, 0.05, WAIT, 0.9),
        (call(5.0), MIXED, 30, 0.05, BACK, 0.0),
        (call(5.0, again=False), MIXED, 30, 0.05, LEAVE, 0.0),
        (call(80.0), MIXED, 30, 0.05, WAIT, 1.0),
        # 4 of 100 end in time: too few at 5 %, enough at 3 %; at 0 nothing is given up.
        (call(0.5), [1.0] * 4 + [100.0] * 96, 30, 0.05, BACK, 0.04),
        (call(0.5), [1.0] * 4 + [100.0] * 96, 30, 0.03, WAIT, 0.04),
        (call(5.0), MIXED, 30, 0.0, WAIT, 0.0),
        # Without a history, or older than all of it: by its soft limit.
        (call(1.0, soft_left=299), [], 30, 0.05, BACK, 0.0),
        (call(1.0, soft_left=299, again=False), [], 30, 0.05, LEAVE, 0.0),
        (call(280.0, soft_left=20), [], 30, 0.05, WAIT, 1.0),
        (call(310.0, soft_left=-10), [], 30, 0.05, WAIT, 1.0),
        (call(150.0, soft_left=150), MIXED, 30, 0.05, BACK, 0.0),
        (call(290.0, soft_left=10), MIXED, 30, 0.05, WAIT, 1.0),
        # What has ended only has to be told.
        (call(5.0, ended=True), MIXED, 30, 0.05, WAIT, 1.0),
        (call(5.0, soft_left=float("inf")), [], 30, 0.05, BACK, 0.0),
    ],
)
def test_decide(running, seconds, left, cutoff, verdict, chance):
    decision = decide(running, history(seconds), left, cutoff)
    assert decision.verdict is verdict
    assert decision.chance == pytest.approx(chance)


@pytest.mark.parametrize(
    ("running", "seconds", "share", "expected"),
    [
        (call(0.5), MIXED, 0.5, 0.5),
        (call(0.5), MIXED, 0.95, 99.5),
        (call(5.0), MIXED, 0.5, 95.0),
        (call(5.0, hard_left=20), MIXED, 0.5, 20.0),
        (call(200.0, hard_left=250), MIXED, 0.5, 250.0),
        (call(1.0, hard_left=449), [], 0.95, 449.0),
        (call(1.0, ended=True), [], 0.95, 0.0),
    ],
)
def test_rest(running, seconds, share, expected):
    assert rest(running, history(seconds), share) == pytest.approx(expected, rel=0.02)
