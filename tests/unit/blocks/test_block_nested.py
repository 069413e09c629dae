"""Blocks in blocks: whose limit interrupts what, and that none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from celery_budgets.execution.call import Call, HardLimitReached
from celery_budgets.execution.limits import async_exception as thread_exception
from celery_budgets.execution.limits.watchdog import watchdog
from celery_budgets.execution.memory import rss as memory
from celery_budgets.model.budget import Budget, TimeLimits
from tests.support.waiting import in_loop, wait_until
from tests.unit.blocks.test_block import LONG, burn, outcomes


@pytest.fixture(autouse=True)
def _nothing_is_left(budgets):
    """No thread stays out of reach."""
    yield
    assert not is_shielded()


def is_shielded():
    return threading.get_ident() in thread_exception._shielded


def test_a_limit_is_not_taken_for_a_failure_of_an_inner_block(budgets, monkeypatch, caplog):
    """It is due while an inner block opens, which logs and passes over errors of its own."""
    rss = memory.rss

    def slow():
        burn(0.4)
        return rss()

    def body():
        monkeypatch.setattr(memory, "rss", only_here(slow))
        with budgets.call("one"):
            monkeypatch.undo()
            burn()

    with pytest.raises(SoftTimeLimitExceeded), budgets.call("lane", timeout=0.2, hard_timeout=LONG):
        body()
    assert "budgets.telemetry_failed" not in caplog.text
    assert outcomes(budgets) == {"soft_time_limit": 1}


def only_here(read):
    """Return *read* for this thread, and not for the watchdog."""
    mine, rss = threading.get_ident(), memory.rss
    return lambda: read() if threading.get_ident() == mine else rss()


def test_one_shield_inside_of_another():
    """The inner one ends with the outer one."""
    with thread_exception.shielded():
        with thread_exception.shielded():
            pass
        assert is_shielded()
    assert not is_shielded()


def test_what_a_shield_has_held_off_comes_at_its_end(budgets):
    """At the watchdog's next look the thread may well be shielded again, time after time.

    Most looks come while a block opens: there the thread lets others run.
    """

    def body():
        with budgets.call("lane", timeout=0.1, hard_timeout=LONG) as call:
            with thread_exception.shielded():
                wait_until(lambda: call.soft_exceeded, "the soft limit is over")
                burn(0.3)
                watchdog().release(call)  # it does not look again
            raise AssertionError("it went on")

    with pytest.raises(SoftTimeLimitExceeded):
        body()
    assert outcomes(budgets) == {"soft_time_limit": 1}


def test_an_inner_hard_limit_does_not_replace_the_soft_one_around_it(budgets):
    """Both are due in one blocking call, and both arrive after it."""
    came = []

    def blocks():
        try:
            with budgets.call("one", timeout=0.1, hard_timeout=0.4, soft="warn"):
                time.sleep(0.8)
        except TimeLimitExceeded:
            came.append("inner")
        burn(LONG / 3)

    began = time.monotonic()
    with pytest.raises(SoftTimeLimitExceeded), budgets.call("lane", timeout=0.2, hard_timeout=LONG):
        blocks()
    assert came == ["inner"]
    assert time.monotonic() - began < LONG / 4


def test_a_soft_limit_does_not_replace_an_inner_hard_one(budgets, monkeypatch):
    """Whenever the watchdog looks: the inner one arrives first, and the soft one after it."""
    sent, outers = [], []
    monkeypatch.setattr(thread_exception, "_set", lambda thread_id, error: sent.append(error))

    def both_are_due():
        with budgets.call("lane") as outer, budgets.call("one") as inner:
            outers.append(outer)
            thread_exception.raise_in(inner, HardLimitReached, sent.append)
            thread_exception.raise_in(outer, SoftTimeLimitExceeded, sent.append)

    with pytest.raises(TimeLimitExceeded):
        both_are_due()
    kinds = [error for error in sent if error is not None]
    assert [issubclass(kind, HardLimitReached) for kind in kinds] == [True]
    assert not outers[0].soft_sent


def test_a_soft_limit_that_has_arrived_does_not_come_again(budgets):
    """Although a hard limit comes after it, and whatever the code did about it."""
    came = []

    def stubborn():
        with budgets.call("one", timeout=0.3, hard_timeout=0.6, soft="warn"):
            with contextlib.suppress(SoftTimeLimitExceeded):
                burn()
            came.append("soft")
            burn()

    with budgets.call("lane", timeout=0.2, hard_timeout=LONG):
        with pytest.raises(TimeLimitExceeded):
            stubborn()
        burn(0.5)
    assert came == ["soft"]
    assert outcomes(budgets) == {"succeeded": 1}


def test_a_block_after_the_soft_limit_around_it_has_one_of_its_own(budgets):
    """It was delivered, and is no reason to hold back that of how the code tidies up."""
    with budgets.call("lane", timeout=0.1, hard_timeout=LONG):
        with contextlib.suppress(SoftTimeLimitExceeded):
            burn()
        began = time.monotonic()
        with (
            pytest.raises(SoftTimeLimitExceeded),
            budgets.call("one", timeout=0.2, hard_timeout=LONG / 2),
        ):
            burn(LONG / 3)
        assert time.monotonic() - began < LONG / 4


@in_loop
async def test_a_coroutine_after_its_soft_limit_has_one_of_its_own(budgets):
    """The same by cancellation."""
    async with budgets.call("lane", timeout=0.1, hard_timeout=LONG):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(LONG)
        began = time.monotonic()
        with pytest.raises(SoftTimeLimitExceeded):
            async with budgets.call("one", timeout=0.2, hard_timeout=LONG / 2):
                await asyncio.sleep(LONG / 3)
        assert time.monotonic() - began < LONG / 4


@in_loop
async def test_a_sync_block_in_a_coroutine_with_the_same_limit(budgets):
    """A cancellation does not reach it, so its own limit does."""
    began = time.monotonic()
    with pytest.raises(SoftTimeLimitExceeded):
        async with budgets.call("lane", timeout=0.2, hard_timeout=LONG):
            in_thread(budgets)
    assert time.monotonic() - began < LONG / 4


def in_thread(budgets):
    with budgets.call("one", timeout=LONG):
        burn(LONG / 3)


@in_loop
async def test_with_alone_is_refused_on_the_stacks_of_contextlib(budgets):
    """They enter it in the coroutine's place; other tasks of the loop are not to be hit."""
    with contextlib.ExitStack() as stack, pytest.raises(TypeError, match="async with"):
        stack.enter_context(budgets.call("lane"))
    async with contextlib.AsyncExitStack() as stack:
        with pytest.raises(TypeError, match="async with"):
            stack.enter_context(budgets.call("lane"))
        await stack.enter_async_context(budgets.call("lane"))
    assert outcomes(budgets) == {"succeeded": 1}


def test_the_stacks_of_contextlib_in_a_thread(budgets):
    """As ``with`` does."""
    with contextlib.ExitStack() as stack:
        call = stack.enter_context(budgets.call("lane"))
        wait_until(lambda: call.open, "it is open")
    assert outcomes(budgets) == {"succeeded": 1}


def test_a_ceiling_of_nothing_is_a_ceiling():
    """Zero seconds, and not without end."""
    call = Call("id", "lane", Budget(), TimeLimits(10, 15), ceiling=0.0, hard_ceiling=0.0)
    assert (call.ceiling, call.hard_ceiling) == (10, 15)
    assert call.extend(60) == pytest.approx(0, abs=0.1)
    assert Call("id", "lane", Budget(), TimeLimits(10, 15)).ceiling == math.inf
