"""The slots of this process: how many blocks of a lane, and of all lanes, are open at once.

Who waits for a slot gets it in the order of arrival, whether a thread or a coroutine waits. Of
two lanes each has its own order, and a lane that is full holds up no other.

Not the slots of a worker: those are for tasks (:mod:`celery_budgets.worker.lanes.lane_slots`).
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any

from celery_budgets.errors import RejectedByBudget
from celery_budgets.model.lanes import Lanes
from celery_budgets.model.per_process import PerProcess
from celery_budgets.model.reasons import REASON_GLOBAL, REASON_LANE, REASON_NESTED

__all__ = ["ProcessSlots", "Slot", "process_slots"]

#: Longest that a thread waits without a look at its slot, seconds: only between two looks is it
#: asked to stop by an asynchronous exception.
LOOK = 0.1


class Slot:
    """One slot that somebody wants, has, or had.

    Args:
        lane: Name of the lane.
        outer: The slot of the block around, where there is one.
    """

    __slots__ = ("lane", "outer", "wake")

    def __init__(self, lane: str, outer: Slot | None = None) -> None:
        self.lane = lane
        self.outer = outer
        #: Called, in any thread, when the slot was given to whoever waits for it.
        self.wake: Callable[[], object] = _nobody


class ProcessSlots:
    """Gives the slots of one process.

    Args:
        limits: Slots by name of the lane.
        limit: Slots over all lanes.
    """

    def __init__(self, limits: Mapping[str, int], limit: int) -> None:
        self.limits = dict(limits)
        self.limit = limit
        self._lanes: Lanes | None = None
        # Sets, and not numbers: one step takes or gives a slot, whatever interrupts the thread.
        self._held: dict[str, set[Slot]] = {lane: set() for lane in limits}
        self._waiting: dict[str, OrderedDict[Slot, int]] = {lane: OrderedDict() for lane in limits}
        self._arrivals = 0
        # Entered again where the garbage collector, inside of it, ends a generator with a block.
        self._lock = threading.RLock()

    def fit(self, lanes: Lanes) -> None:
        """Give as many slots as *lanes* say from now on; whoever has one keeps it.

        A lane that is not among them keeps its slots: somebody may still be in one.
        """
        if self._lanes is lanes:
            return
        with self._lock:
            limits = self.limits | {lane.name: lane.concurrency for lane in lanes.values()}
            # Replaced, and not changed: elsewhere they are looked through without the lock.
            self._held = {lane: set() for lane in limits} | self._held
            self._waiting = {lane: OrderedDict() for lane in limits} | self._waiting
            self.limits, self.limit = limits, lanes.global_concurrency
            self._give()
            self._lanes = lanes  # last: who is interrupted before that does it all again

    def active(self, lane: str | None = None) -> int:
        """Return the slots that are taken now, of *lane* or of all."""
        held = self._held.values() if lane is None else (self._held[lane],)
        return sum(map(len, held))

    def waiting(self, lane: str) -> int:
        """Return how many wait for a slot of *lane*."""
        return len(self._waiting[lane])

    def reserve(self, slot: Slot, wait: float | None) -> None:
        """Get *slot*, and block this thread until it is free.

        Args:
            slot: The slot; it has to be released, also where this raises.
            wait: Longest wait, seconds; ``None``: no end.

        Raises:
            RejectedByBudget: It was not free in time, or never will be.
        """
        if self._take(slot, wait):
            return
        given = threading.Event()
        until = monotonic() + (math.inf if wait is None else wait)
        self._wait_for(slot, given.set)
        while not self.has(slot):
            left = until - monotonic()
            if left <= 0:
                raise self._rejected(slot)
            given.wait(min(left, LOOK))

    async def reserve_async(self, slot: Slot, wait: float | None) -> None:
        """Get *slot* as :meth:`reserve` does, and let the event loop run on meanwhile."""
        if self._take(slot, wait):
            return
        loop = asyncio.get_running_loop()
        given = asyncio.Event()
        self._wait_for(slot, lambda: _wake(loop, given))
        try:
            async with asyncio.timeout(wait):
                await given.wait()
        except TimeoutError:
            if not self.has(slot):
                raise self._rejected(slot) from None

    def has(self, slot: Slot) -> bool:
        """Return whether *slot* is taken."""
        return slot in self._held[slot.lane]

    def release(self, slot: Slot) -> None:
        """Give *slot* back, or stop waiting for it; as often as wanted."""
        # First, and in one step: what comes now may be interrupted.
        self._held[slot.lane].discard(slot)
        with self._lock:
            self._waiting[slot.lane].pop(slot, None)
            self._give()

    def _take(self, slot: Slot, wait: float | None) -> bool:
        """Take *slot* where it is free, and queue up for it where it is not.

        Raises:
            RejectedByBudget: It is not free, and to wait for it is not wanted or of no use.
        """
        with self._lock:
            self._arrivals += 1
            self._waiting[slot.lane][slot] = self._arrivals
            self._give()
            if slot in self._held[slot.lane]:
                return True
            holders = self._holders(slot)
        if holders <= _around(slot):
            raise RejectedByBudget(REASON_NESTED, slot.lane)
        if wait is not None and wait <= 0:
            raise self._rejected(slot)
        return False

    def _wait_for(self, slot: Slot, wake: Callable[[], object]) -> None:
        with self._lock:
            slot.wake = wake
            if slot in self._held[slot.lane]:
                wake()  # given since it was asked for

    def _give(self) -> None:
        """Give free slots to those who have waited longest."""
        while self.active() < self.limit:
            heads = [
                (next(iter(waiting.items())), lane)
                for lane, waiting in self._waiting.items()
                if waiting and len(self._held[lane]) < self.limits[lane]
            ]
            if not heads:
                return
            (slot, _), lane = min(heads, key=lambda head: head[0][1])
            self._held[lane].add(slot)
            try:
                # Before it leaves the line: who is interrupted here has woken it, or does it again.
                slot.wake()
            except RuntimeError:
                self._held[lane].discard(slot)  # its event loop is closed: nobody would return it
            del self._waiting[lane][slot]

    def _holders(self, slot: Slot) -> set[Slot]:
        """Return those of whom one has to leave before *slot* can be given."""
        if len(self._held[slot.lane]) >= self.limits[slot.lane]:
            return set(self._held[slot.lane])
        return set().union(*self._held.values())

    def _rejected(self, slot: Slot) -> RejectedByBudget:
        full = len(self._held[slot.lane]) >= self.limits[slot.lane]
        return RejectedByBudget(REASON_LANE if full else REASON_GLOBAL, slot.lane)


_slots = PerProcess(partial(ProcessSlots, {}, 0))


def process_slots(app: Any, lanes: Lanes) -> ProcessSlots:
    """Return the slots of *app* in this process, made at their first use (after a fork too).

    Made once: where the settings are read anew, the slots that are taken count on.
    """
    slots = _slots.of(app)
    slots.fit(lanes)
    return slots


def _nobody() -> None:
    """Wake nobody: the slot was free at once."""


def _wake(loop: asyncio.AbstractEventLoop, given: asyncio.Event) -> None:
    loop.call_soon_threadsafe(given.set)  # RuntimeError where the loop is closed


def _around(slot: Slot) -> set[Slot]:
    """Return the slots of the blocks that *slot* is asked for in."""
    around, outer = set(), slot.outer
    while outer is not None:
        around.add(outer)
        outer = outer.outer
    return around
