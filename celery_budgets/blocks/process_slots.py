"""The slots of this process: limits how many blocks of a lane, and of all lanes, are open at once.

Threads and coroutines get slots in the order of their requests. Each lane has its own order, and
a full lane does not delay another.

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

#: Longest uninterrupted wait of a thread, seconds: an asynchronous exception is raised only
#: between two waits.
LOOK = 0.1


class Slot:
    """One slot, from the request for it to its release.

    Args:
        lane: Name of the lane.
        outer: The slot of the enclosing block, if there is one.
    """

    __slots__ = ("call", "lane", "outer", "wake", "wish")

    def __init__(self, lane: str, outer: Slot | None = None) -> None:
        self.lane = lane
        self.outer = outer
        #: Called, in any thread, when the slot is granted.
        self.wake: Callable[[], object] = _nobody
        #: What its block needs of limits over the fleet (blocks.limited_slots).
        self.wish: Any = None
        #: The block, once it runs.
        self.call: Any = None


class ProcessSlots:
    """Grants the slots of one process.

    Args:
        limits: Number of slots by name of the lane.
        limit: Slots over all lanes.
    """

    #: The limits over the fleet of its blocks, and how long one has waited for them: none.
    names: tuple[str, ...] = ()
    waited = 0.0

    def __init__(self, limits: Mapping[str, int], limit: int) -> None:
        self.limits = dict(limits)
        self.limit = limit
        self._lanes: Lanes | None = None
        # Sets, not numbers: an interrupt cannot split adding or removing a member.
        self._held: dict[str, set[Slot]] = {lane: set() for lane in limits}
        self._waiting: dict[str, OrderedDict[Slot, int]] = {lane: OrderedDict() for lane in limits}
        self._arrivals = 0
        # Reentrant: garbage collection inside it may close a generator that ends a block.
        self._lock = threading.RLock()

    def fit(self, lanes: Lanes) -> None:
        """Apply the limits of *lanes* from now on; open blocks keep their slots.

        A lane that is not among them keeps its slots: a block may still be open.
        """
        if self._lanes is lanes:
            return
        with self._lock:
            limits = self.limits | {lane.name: lane.concurrency for lane in lanes.values()}
            # Replaced, not changed: other methods iterate over them without the lock.
            self._held = {lane: set() for lane in limits} | self._held
            self._waiting = {lane: OrderedDict() for lane in limits} | self._waiting
            self.limits, self.limit = limits, lanes.global_concurrency
            self._give()
            self._lanes = lanes  # last: a thread that is interrupted before repeats all of it

    def active(self, lane: str | None = None) -> int:
        """Return the slots that are taken now, of *lane* or of all."""
        held = self._held.values() if lane is None else (self._held[lane],)
        return sum(map(len, held))

    def waiting(self, lane: str) -> int:
        """Return how many requests wait for a slot of *lane*."""
        return len(self._waiting[lane])

    def reserve(self, slot: Slot, wait: float | None) -> None:
        """Acquire *slot*, blocking this thread until it is free.

        Args:
            slot: The slot; it has to be released even if this raises.
            wait: Longest wait, seconds; ``None``: without limit.

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
        """Acquire *slot* like :meth:`reserve`, without blocking the event loop."""
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
        """Return whether *slot* is held."""
        return slot in self._held[slot.lane]

    def release(self, slot: Slot) -> None:
        """Release *slot*, or stop waiting for it; may be called repeatedly."""
        # First, and in one step: the rest may be interrupted.
        self._held[slot.lane].discard(slot)
        with self._lock:
            self._waiting[slot.lane].pop(slot, None)
            self._give()

    def _take(self, slot: Slot, wait: float | None) -> bool:
        """Take *slot* if it is free, else queue for it; return whether it was free.

        Raises:
            RejectedByBudget: It is not free, and waiting is not allowed or cannot help.
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
                wake()  # granted since the request

    def _give(self) -> None:
        """Grant free slots to those who have waited longest."""
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
                # Before it leaves the queue: if interrupted here, this is repeated.
                slot.wake()
            except RuntimeError:
                self._held[lane].discard(slot)  # its loop is closed: nothing would release it
            del self._waiting[lane][slot]

    def _holders(self, slot: Slot) -> set[Slot]:
        """Return the slots of which one has to be released before *slot* can be granted."""
        if len(self._held[slot.lane]) >= self.limits[slot.lane]:
            return set(self._held[slot.lane])
        return set().union(*self._held.values())

    def _rejected(self, slot: Slot) -> RejectedByBudget:
        full = len(self._held[slot.lane]) >= self.limits[slot.lane]
        return RejectedByBudget(REASON_LANE if full else REASON_GLOBAL, slot.lane)


_slots = PerProcess(partial(ProcessSlots, {}, 0))


def process_slots(app: Any, lanes: Lanes) -> ProcessSlots:
    """Return the slots of *app* in this process, created at their first use (also after a fork).

    Created once: when the settings are reloaded, held slots still count.
    """
    slots = _slots.of(app)
    slots.fit(lanes)
    return slots


def _nobody() -> None:
    """Do nothing: the slot was free at once."""


def _wake(loop: asyncio.AbstractEventLoop, given: asyncio.Event) -> None:
    loop.call_soon_threadsafe(given.set)  # RuntimeError if the loop is closed


def _around(slot: Slot) -> set[Slot]:
    """Return the slots of the enclosing blocks of *slot*."""
    around, outer = set(), slot.outer
    while outer is not None:
        around.add(outer)
        outer = outer.outer
    return around
