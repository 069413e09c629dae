"""One call as its process sees it: its clock, its limits, what it has used."""

from __future__ import annotations

import math

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from hypothesis import given
from hypothesis import strategies as st

from celery_budgets import Budget
from celery_budgets.execution import call as call_module
from celery_budgets.execution.call import Call
from celery_budgets.model.budget import TimeLimits


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(call_module, "monotonic", clock)
    return clock


def new_call(soft=10.0, hard=15.0, ceiling=None, rss=0):
    return Call("id", "critic", Budget(), TimeLimits(soft, hard), rss=rss, ceiling=ceiling)


def test_what_remains(clock):
    """Seconds to the soft limit; negative once it is over."""
    call = new_call()
    assert call.remaining() == 10
    clock.now += 4
    assert call.remaining() == 6
    assert repr(call) == "<Call id lane=critic remaining=6 s>"
    clock.now += 8
    assert call.remaining() == -2


def test_extending_moves_both_limits(clock):
    """Without a ceiling all that is asked for is granted, and whoever listens is told."""
    call, told = new_call(), []
    call.moved = told.append
    assert call.extend(5) == 5
    assert (call.remaining(), call.hard_at) == (15, 1020)  # 10 + 5; 1000 + 15 + 5
    assert told == [call]


def test_extending_ends_at_the_ceiling(clock):
    """Only what is left below it is granted, and then nothing; then nobody is told."""
    call, told = new_call(ceiling=12), []
    call.moved = told.append
    assert call.extend(5) == 2  # 10 + 2 = 12
    assert call.hard_at - call.soft_at == 5  # the distance stays
    assert call.extend(5) == 0.0
    assert call.extend(0) == 0.0
    assert len(told) == 1


def test_a_ceiling_below_the_limit_takes_nothing_away(clock):
    """A budget above the broker's ceiling keeps its own limit, but gets no more."""
    call = new_call(ceiling=3)
    assert call.remaining() == 10
    assert call.extend(1) == 0.0


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, -math.inf])
def test_extending_by_what_is_no_time(clock, seconds):
    """Refused, and nothing has moved."""
    call = new_call()
    with pytest.raises(ValueError, match=r"extend\(.*\): give seconds of 0 or more"):
        call.extend(seconds)
    assert (call.remaining(), call.hard_at) == (10, 1015)


@given(st.lists(st.floats(0, 1e6), max_size=20), st.floats(10, 1e6))
def test_no_series_of_extensions_gets_above_the_ceiling(extensions, ceiling):
    """The sum of what was granted is what the limits have moved, up to the ceiling."""
    call = new_call(ceiling=ceiling)
    soft_at = call.soft_at
    granted = sum(call.extend(seconds) for seconds in extensions)
    assert call.soft_at - soft_at == pytest.approx(granted, abs=1e-3)
    assert call.soft_at <= call.started_mono + ceiling + 1e-6
    assert call.soft_at < call.hard_at


def test_checking(clock):
    """Nothing before the soft limit, its exception from there, the hard one from the hard."""
    call = new_call()
    clock.now += 9.9
    call.check()
    assert not call.soft_sent
    clock.now += 0.1
    with pytest.raises(SoftTimeLimitExceeded) as soft:
        call.check()
    assert soft.value.args == (10.0,)
    assert call.soft_sent  # and so nobody raises it a second time
    clock.now += 5
    with pytest.raises(TimeLimitExceeded) as hard:
        call.check()
    assert hard.value.args == (15.0,)


def test_checking_where_the_soft_limit_only_warns(clock):
    """`soft="warn"` raises at the hard limit only."""
    call = Call("id", "critic", Budget(soft="warn"), TimeLimits(10.0, 15.0))
    clock.now += 12
    call.check()
    clock.now += 3
    with pytest.raises(TimeLimitExceeded):
        call.check()


def test_closing_notes_what_was_used(clock):
    """Seconds, the RSS after, and a peak that is never below it."""
    call = new_call(rss=100)
    call.rss_peak = 300
    clock.now += 2.5
    call.close(clock(), 200)
    assert (call.wall_seconds, call.rss_before, call.rss_after, call.rss_peak) == (
        2.5, 100, 200, 300,
    )  # fmt: skip
    assert not call.soft_exceeded
    grown = new_call(rss=100)
    grown.close(clock(), 400)
    assert grown.rss_peak == 400


@pytest.mark.parametrize(
    ("seconds", "sent", "exceeded"), [(9.9, False, False), (10.1, False, True), (1, True, True)]
)
def test_a_call_over_its_soft_limit_says_so(clock, seconds, sent, exceeded):
    """By the clock, or because the limit was raised: also where the body swallowed it."""
    call = new_call()
    call.soft_sent = sent
    clock.now += seconds
    call.close(clock(), 0)
    assert call.soft_exceeded is exceeded


def test_an_extended_call_is_judged_by_its_new_limit(clock):
    """What was granted is not held against it."""
    call = new_call()
    call.extend(5)
    clock.now += 12
    call.close(clock(), 0)
    assert not call.soft_exceeded


def test_over_the_hard_limit(clock):
    """Either because it was told so, or, where nothing could tell it, by the clock."""
    call = new_call()
    assert not call.over_hard_limit(late=True)
    clock.now += 15
    assert call.over_hard_limit(late=True)
    assert not call.over_hard_limit(late=False)
    call.hard_sent = True
    assert call.over_hard_limit(late=False)
