"""``async with budgets.call(...)``: limits by cancellation, and cancellation that is no limit."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from celery_budgets import Lane, RejectedByBudget
from celery_budgets.execution.context import running_call
from tests.support.waiting import in_loop
from tests.unit.blocks.test_block import LONG, outcomes, slots_of


@pytest.fixture
def block_lanes(block_lanes):
    return [*block_lanes, Lane("many", 20)]


@in_loop
async def test_a_block_in_a_coroutine(budgets):
    """A decorated coroutine function is a call each time."""

    @budgets.call("lane", timeout=600)
    async def half(number):
        await asyncio.sleep(0)
        assert running_call() is not None
        return number / 2

    assert [await half(number) for number in (2, 4)] == [1, 2]
    with pytest.raises(TypeError):
        await half("text")
    assert outcomes(budgets) == {"succeeded": 2, "failed": 1}


@in_loop
async def test_with_alone_is_refused_in_a_coroutine(budgets):
    """Its limit would hit the event loop, and whatever else runs there."""
    with pytest.raises(TypeError, match="async with"), budgets.call("lane"):
        raise AssertionError("it ran")


@in_loop
async def test_the_soft_limit_arrives_where_it_awaits(budgets):
    """As Celery's error at the edge; the task itself is not cancelled."""
    began = time.monotonic()
    with pytest.raises(SoftTimeLimitExceeded):
        async with budgets.call("lane", timeout=0.1):
            await asyncio.sleep(LONG)
    assert time.monotonic() - began < LONG / 2
    await asyncio.sleep(0)
    assert asyncio.current_task().cancelling() == 0
    assert outcomes(budgets) == {"soft_time_limit": 1}


@in_loop
async def test_the_hard_limit_comes_again_and_again(budgets):
    """A body that goes on after each cancellation is over all the same."""

    @budgets.call("lane", timeout=0.1)
    async def stubborn():
        stopped = 0
        while stopped < 3:
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                stopped += 1

    with pytest.raises(TimeLimitExceeded):
        await stubborn()
    assert asyncio.current_task().cancelling() == 0
    assert outcomes(budgets) == {"hard_time_limit": 1}


@in_loop
async def test_the_soft_limit_may_be_swallowed(budgets):
    """Then the call succeeds."""
    async with budgets.call("lane", timeout=0.1):
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(LONG)
    assert asyncio.current_task().cancelling() == 0
    assert outcomes(budgets) == {"succeeded": 1}


@in_loop
async def test_a_body_that_does_not_await_again(budgets):
    """Nothing of its limit is thrown into what comes behind the block."""
    async with budgets.call("lane", timeout=0.05, hard_timeout=LONG):
        time.sleep(0.3)  # blocks the loop, as careless code does
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@in_loop
async def test_cancelled_from_outside(budgets):
    """It stays a cancellation; the call was revoked."""
    opened = asyncio.Event()

    async def run():
        async with budgets.call("lane", timeout=600):
            opened.set()
            await asyncio.sleep(LONG)

    task = asyncio.create_task(run())
    await opened.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert outcomes(budgets) == {"revoked": 1}


@in_loop
async def test_cancelled_while_it_waits(budgets):
    """It leaves the line."""

    async def run():
        async with budgets.call("one", wait=None):
            raise AssertionError("it ran")

    leave = threading.Event()
    opened = threading.Event()

    def hold():
        with budgets.call("one"):
            opened.set()
            leave.wait(LONG)

    holder = asyncio.create_task(asyncio.to_thread(hold))
    await asyncio.to_thread(opened.wait, LONG)
    task = asyncio.create_task(run())
    while not slots_of(budgets).waiting("one"):
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slots_of(budgets).waiting("one") == 0
    leave.set()
    await holder
    assert outcomes(budgets, "one") == {"revoked": 1, "succeeded": 1}


@in_loop
async def test_a_timeout_of_asyncio_around_it(budgets):
    """Is that of asyncio, also where the block's own comes close behind."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), budgets.call("lane", timeout=600):
            await asyncio.sleep(LONG)
    with pytest.raises(SoftTimeLimitExceeded):
        async with asyncio.timeout(LONG), budgets.call("lane", timeout=0.1):
            await asyncio.sleep(LONG)
    with pytest.raises(TimeoutError):
        async with budgets.call("lane", timeout=600), asyncio.timeout(0.05):
            await asyncio.sleep(LONG)


@in_loop
async def test_blocks_inside_of_each_other(budgets):
    """The outer limit ends both, and is thrown once; an inner one ends the inner alone."""
    thrown = []

    async def between(outer):
        try:
            async with budgets.call("one", timeout=600) as inner:
                assert inner.soft_at == outer.soft_at
                await asyncio.sleep(LONG)
        except asyncio.CancelledError as exc:
            thrown.append(exc)
            raise

    with pytest.raises(SoftTimeLimitExceeded):
        async with budgets.call("lane", timeout=0.2) as outer:
            await between(outer)
    assert len(thrown) == 1
    assert outcomes(budgets, "one") == {"soft_time_limit": 1}
    async with budgets.call("lane", timeout=600):
        with pytest.raises(SoftTimeLimitExceeded):
            async with budgets.call("one", timeout=0.1):
                await asyncio.sleep(LONG)
        await asyncio.sleep(0)
    assert outcomes(budgets) == {"soft_time_limit": 1, "succeeded": 1}


@in_loop
async def test_its_own_slot_is_not_waited_for(budgets):
    """Not by the tasks that it starts either."""

    async def another():
        async with budgets.call("one", wait=None):
            raise AssertionError("it ran")

    async with budgets.call("one"):
        with pytest.raises(RejectedByBudget, match="nested"):
            await asyncio.create_task(another())


@in_loop
async def test_many_at_once(budgets):
    """No more than the lane has, and none waits for ever."""
    most = 0

    async def run():
        nonlocal most
        async with budgets.call("many", wait=None):
            most = max(most, slots_of(budgets).active("many"))
            await asyncio.sleep(0)

    await asyncio.gather(*(run() for _ in range(500)))
    assert most <= 20
    assert outcomes(budgets, "many") == {"succeeded": 500}


@in_loop
async def test_ten_thousand_leave_nothing_behind(budgets):
    """Neither slots nor tasks."""
    for _ in range(10_000):
        async with budgets.call("lane"):
            pass
    assert slots_of(budgets).active() == 0
    assert len(asyncio.all_tasks()) == 1
    assert outcomes(budgets) == {"succeeded": 10_000}
