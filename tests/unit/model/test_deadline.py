"""Deadlines as values: what a message may carry, and how they cut the limits of a call."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_budgets import Budget
from celery_budgets.errors import RejectedByBudget
from celery_budgets.execution.call import Call, Terms
from celery_budgets.model.budget import TimeLimits
from celery_budgets.model.deadline import Deadline
from celery_budgets.tasks.deadline_at_start import terms_at_start

LIMITS = TimeLimits(300.0, 450.0)


def in_seconds(soft, hard):
    now = time.time()
    return Deadline(now + soft, now + hard)


@pytest.mark.parametrize(
    "header",
    [None, 5, "soon", [], [1], [1, 2, 3], ["a", "b"], [None, None], [math.nan, 1], [1, math.inf]],
)
def test_what_makes_no_sense_is_no_deadline(header):
    """Producers may send anything."""
    assert Deadline.of(header) is None


def test_as_it_travels():
    """A list, whose hard instant is never before its soft one."""
    assert Deadline.of([10, 15.5]) == (10, 15.5)
    assert Deadline.of((10, 5)) == (10, 10)


@pytest.mark.parametrize("wrong", [-1, "soon", True, math.inf, object()])
def test_seconds_that_make_no_sense(wrong):
    """They are named."""
    with pytest.raises(ValueError, match="deadline: "):
        Deadline.after(wrong, 1.5)


def test_so_many_seconds_from_now():
    """Or text; the hard one is by the factor later."""
    soft, hard = Deadline.after("2m", 1.5).left()
    assert soft == pytest.approx(120, abs=1)
    assert hard == pytest.approx(180, abs=1)


def test_it_cuts_what_is_later():
    """Each limit by itself."""
    assert in_seconds(1000, 2000).clamp(LIMITS) == LIMITS
    soft, hard = in_seconds(10, 2000).clamp(LIMITS)
    assert (round(soft), hard) == (10, 450)
    soft, hard = in_seconds(10, 20).clamp(LIMITS)
    assert (round(soft), round(hard)) == (10, 20)


@given(
    soft=st.floats(0.001, 1e5), more=st.floats(1.001, 100),
    left=st.floats(0.001, 1e5), later=st.floats(0, 1e5),
)  # fmt: skip
def test_a_cut_pair_is_in_order(soft, more, left, later):
    """And neither of it above what was left or what it was."""
    limits = TimeLimits(soft, soft * more)
    deadline = in_seconds(left, left + later)
    cut = deadline.clamp(limits)
    assert cut.soft < cut.hard
    assert cut.soft <= min(soft, left + 1)
    assert cut.hard <= min(soft * more, left + later + 1)


def test_the_earlier_of_two():
    """Keeps both."""
    assert Deadline(10, 30).earlier(Deadline(20, 25)) == (10, 25)
    assert Deadline(10, 30).earlier(None) == (10, 30)


def test_that_of_a_running_call():
    """From its monotonic instants."""
    deadline = Call("id", "lane", Budget(), TimeLimits(10, 15)).deadline()
    assert deadline is not None
    assert deadline.left() == pytest.approx((10, 15), abs=0.5)
    forever = Call("id", "lane", Budget(), TimeLimits(math.inf, math.inf))
    assert forever.deadline() is None


class Request:
    """What of a task's request counts here."""

    def __init__(self, deadline):
        self.budgets_deadline = deadline


def test_a_call_begins_with_what_is_left():
    """It may also extend itself no further."""
    terms = Terms("lane", 300, 450, 3600)
    assert terms_at_start(terms, Request(None)) == terms
    cut = terms_at_start(terms, Request(list(in_seconds(10, 20))))
    assert (round(cut.soft), round(cut.hard)) == (10, 20)
    assert (round(cut.ceiling), round(cut.hard_ceiling)) == (10, 20)
    call = Call(
        "id", "lane", Budget(), TimeLimits(5, 18), ceiling=cut.ceiling,
        hard_ceiling=cut.hard_ceiling,
    )  # fmt: skip
    assert call.extend(60) == pytest.approx(5, abs=0.1)
    assert call.hard_at - call.started_mono == pytest.approx(20, abs=0.1)


def test_a_call_does_not_begin_too_late():
    """It would be over at once."""
    with pytest.raises(RejectedByBudget) as caught:
        terms_at_start(Terms("lane", 300, 450, None), Request(list(in_seconds(-1, 20))))
    assert (caught.value.reason, caught.value.lane) == ("deadline", "lane")
