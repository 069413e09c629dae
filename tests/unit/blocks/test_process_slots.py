"""The slots of one process: how many, in which order, and what becomes of who waits."""

from __future__ import annotations

import asyncio
import threading

import pytest

from celery_budgets import Lane, Lanes, RejectedByBudget
from celery_budgets.blocks.process_slots import ProcessSlots, Slot
from tests.support.waiting import in_loop, wait_until


@pytest.fixture
def slots():
    return ProcessSlots({"one": 1, "two": 2, "three": 3}, 4)


def take(slots, lane, outer=None, wait=0.0):
    slot = Slot(lane, outer)
    slots.reserve(slot, wait)
    return slot


def refused(slots, lane, outer=None, wait=0.0):
    slot = Slot(lane, outer)
    try:
        with pytest.raises(RejectedByBudget) as caught:
            slots.reserve(slot, wait)
    finally:
        slots.release(slot)
    assert caught.value.lane == lane
    return caught.value.reason


def test_a_lane_has_so_many(slots):
    """And one more when one is given back, however often that is done."""
    first, _ = take(slots, "two"), take(slots, "two")
    assert refused(slots, "two") == "lane_concurrency"
    slots.release(first)
    slots.release(first)
    take(slots, "two")
    assert refused(slots, "two") == "lane_concurrency"
    assert slots.active("two") == slots.active() == 2


def test_all_lanes_together_have_so_many(slots):
    """Four here, although the lanes have six."""
    for lane in ("one", "two", "three", "three"):
        take(slots, lane)
    assert refused(slots, "two") == "global_concurrency"
    assert refused(slots, "one") == "lane_concurrency"


def test_a_wait_ends(slots):
    """Without a slot by then the call is refused, and waits no more."""
    take(slots, "one")
    assert refused(slots, "one", wait=0.05) == "lane_concurrency"
    assert slots.waiting("one") == 0


def test_what_only_its_own_blocks_hold_is_refused_at_once(slots):
    """To wait for it would be for ever; also where somebody waits without end."""
    outer = take(slots, "one")
    inner = take(slots, "two", outer)
    assert refused(slots, "one", inner, wait=None) == "nested"
    first = take(slots, "two", inner)
    assert refused(slots, "two", first, wait=None) == "nested"


def test_all_slots_held_by_its_own_blocks():
    """The limit over all lanes too."""
    slots = ProcessSlots({"one": 1, "two": 1, "three": 1}, 2)
    inner = take(slots, "two", take(slots, "one"))
    assert refused(slots, "three", inner, wait=None) == "nested"


def test_threads_come_first_in_the_order_of_their_arrival(slots):
    """Ten of them wait for one slot."""
    held = take(slots, "one")
    order, threads = [], []

    def wait(number):
        slot = take(slots, "one", wait=None)
        order.append(number)
        slots.release(slot)

    for number in range(10):
        thread = threading.Thread(target=wait, args=(number,))
        thread.start()
        threads.append(thread)
        wait_until(lambda: slots.waiting("one") == len(threads), "it waits")
    slots.release(held)
    for thread in threads:
        thread.join(10)
    assert order == list(range(10))
    assert slots.active() == 0


@in_loop
async def test_threads_and_coroutines_wait_in_one_line(slots):
    """By turns, and the event loop runs on meanwhile."""
    held = take(slots, "one")
    order, threads, tasks = [], [], []

    def in_thread(number):
        slot = take(slots, "one", wait=None)
        order.append(number)
        slots.release(slot)

    async def in_coroutine(number):
        slot = Slot("one")
        await slots.reserve_async(slot, None)
        order.append(number)
        slots.release(slot)

    for number in range(6):
        if number % 2:
            tasks.append(asyncio.create_task(in_coroutine(number)))
        else:
            threads.append(threading.Thread(target=in_thread, args=(number,)))
            threads[-1].start()
        while slots.waiting("one") <= number:
            await asyncio.sleep(0.001)
    slots.release(held)
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    await asyncio.to_thread(lambda: [thread.join(10) for thread in threads])
    assert order == list(range(6))


def test_a_full_lane_holds_up_no_other(slots):
    """Although somebody has waited for it for longer."""
    take(slots, "one")
    waiting = threading.Thread(target=lambda: refused(slots, "one", wait=5))
    waiting.start()
    wait_until(lambda: slots.waiting("one") == 1, "somebody waits")
    slots.release(take(slots, "three"))
    assert slots.waiting("one") == 1
    for slot in set(slots._held["one"]):
        slots.release(slot)
    wait_until(lambda: slots.active("one") == 1, "the one that waited has it")
    for slot in set(slots._held["one"]):
        slots.release(slot)
    waiting.join(10)


@in_loop
async def test_a_cancelled_coroutine_leaves_the_line(slots):
    """Whoever comes behind it gets the slot."""
    held = take(slots, "one")

    async def wait(slot):
        try:
            await slots.reserve_async(slot, None)
        finally:
            slots.release(slot)

    first, second = (asyncio.create_task(wait(Slot("one"))) for _ in range(2))
    while slots.waiting("one") < 2:
        await asyncio.sleep(0.001)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    slots.release(held)
    await asyncio.wait_for(second, 10)
    assert (slots.active(), slots.waiting("one")) == (0, 0)


@in_loop
async def test_a_coroutine_waits_so_long(slots):
    """And no longer."""
    take(slots, "one")
    slot = Slot("one")
    with pytest.raises(RejectedByBudget):
        await slots.reserve_async(slot, 0.05)
    slots.release(slot)
    assert slots.waiting("one") == 0


def test_a_slot_goes_past_a_loop_that_was_closed(slots):
    """Whoever waited there never returns it; the thread that gives it back notices nothing."""
    held = take(slots, "one")
    gone, loop = Slot("one"), asyncio.new_event_loop()
    waiting = slots.reserve_async(gone, None)
    task = loop.create_task(waiting)
    loop.run_until_complete(asyncio.sleep(0))
    assert slots.waiting("one") == 1
    loop.close()
    behind = Slot("one")
    slots._take(behind, None)
    slots.release(held)
    assert slots.has(behind)
    assert not slots.has(gone)
    assert slots.waiting("one") == 0
    task._log_destroy_pending = False  # asyncio would tell of the task that the test leaves
    waiting.close()


def test_who_is_given_a_slot_is_woken_before_leaving_the_line(slots):
    """So that nobody waits for ever where the thread that gives it is interrupted."""
    held, next_one = take(slots, "one"), Slot("one")
    slots._take(next_one, None)
    in_line = []
    slots._wait_for(next_one, lambda: in_line.append(slots.waiting("one")))
    slots.release(held)
    assert in_line == [1]
    assert (slots.has(next_one), slots.waiting("one")) == (True, 0)


def test_limits_that_change_keep_what_is_taken(slots):
    """More slots go to those who wait, at once; a lane that is gone keeps its own."""
    take(slots, "one")
    waits = Slot("one")
    slots._take(waits, None)
    slots.fit(Lanes([Lane("one", 2), Lane("new", 1)], global_concurrency=3))
    assert slots.has(waits)
    take(slots, "new")
    assert refused(slots, "two") == "global_concurrency"
    assert slots.active() == 3
