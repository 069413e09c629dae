"""Slots: how many calls of each lane run at once in this worker, and which goes next.

A slot is reserved before a call enters the pool and given back when the call has its outcome,
also when its process died. A call that finds its lane full is kept here, in order, until a slot
is free; the broker sends little more than the slots
(:mod:`celery_budgets.worker.lanes.lane_consumer`).

Covers: limits per lane and over all, borrowing, priorities, whose turn it is. Plain objects.
Does not cover: how calls get into the pool (:mod:`celery_budgets.worker.bootsteps.lanes_step`).
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from celery_budgets.model.lanes import Lane
from celery_budgets.model.priority import Priority

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["BORROW_SECONDS", "LaneSlots", "WorkerSlots"]

#: A lane whose 95th percentile is above this borrows nothing: a borrowed slot comes back only
#: when the call in it has ended. Seconds.
BORROW_SECONDS = 10.0


class LaneSlots:
    """The slots of one lane.

    Args:
        lane: Its concurrency, and what it may lend and borrow.
    """

    __slots__ = ("held", "lane", "limit", "low", "low_at", "served", "started", "taken")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        #: Calls that may run at once, borrowed slots aside.
        self.limit = lane.concurrency
        #: Does this worker consume its queue? Others get no calls that slots could be kept for.
        self.served = True
        self.taken: set[Delivery] = set()
        self.held: deque[Delivery] = deque()
        #: Those of low priority among the calls in a slot.
        self.low: set[Delivery] = set()
        #: When one of low priority was started last, by the monotonic clock.
        self.low_at = monotonic()
        #: Calls of other priorities that have started.
        self.started = 0

    @property
    def keeps(self) -> int:
        """Slots that are never lent."""
        return self.limit if self.lane.min is None else min(self.lane.min, self.limit)

    @property
    def most(self) -> int:
        """Calls that may run at once, borrowed slots included."""
        return max(self.limit, self.lane.max or 0)

    def owed(self) -> int:
        """Return the slots that are to stay free for this lane."""
        return max(0, self.keeps - len(self.taken)) if self.served else 0

    def has_room_for_others(self) -> bool:
        """Return whether calls of higher than low priority would find a slot, and none waits."""
        return len(self.taken) - len(self.low) < self.limit and not self.held

    def fullness(self) -> tuple[bool, float]:
        """Return what lanes are ordered by when slots are short: the smallest goes first."""
        taken = len(self.taken)
        return taken >= self.keeps, taken / self.limit


class WorkerSlots:
    """Reserves slots for calls.

    Args:
        lanes: The lanes of the app.
        size: Returns how many calls the pool takes at once, now.
        p95: Returns the 95th percentile of a lane's durations, seconds; ``None`` before its
            first call.
        wake: Asked, from any thread, to have :meth:`due` looked at soon.
        priority: Returns that of a call; ``None`` where the app has none.
        aging: Longest that a busy lane starts no call of low priority, seconds.
        capacity: Calls that the worker may run at once, over all its lanes.
    """

    def __init__(
        self,
        lanes: Iterable[Lane],
        size: Callable[[], int],
        p95: Callable[[str], float | None],
        wake: Callable[[], None],
        priority: Callable[[Delivery], Priority] | None = None,
        aging: float = inf,
        capacity: float = inf,
    ) -> None:
        self.lanes = {lane.name: LaneSlots(lane) for lane in lanes}
        self._size = size
        self._p95 = p95
        self._wake = wake
        self._priority = priority
        self._aging = aging
        #: Calls that the worker may run at once, over all its lanes.
        self.capacity = capacity
        self._total = 0
        #: Those of the lanes that keep calls.
        self._holding: dict[str, LaneSlots] = {}
        # Calls end in pool threads, and begin in the event loop.
        self._lock = threading.Lock()

    def take(self, request: Delivery) -> bool:
        """Reserve a slot for *request*; without one, keep it until :meth:`due` yields it."""
        slots = self.lanes[request.lane.name]
        with self._lock:
            if request in slots.taken:
                return True
            turn_of = self._next()
            if turn_of is None and not slots.held and self._may_take(slots):
                self._reserve(slots, request)
                return True
            slots.held.append(request)
            self._holding[slots.lane.name] = slots
        if turn_of is not None:
            self._wake()
        return False

    def release(self, request: Delivery) -> None:
        """Give the slot of *request* back, if it has one; kept calls may be due then."""
        slots = self.lanes[request.lane.name]
        with self._lock:
            if request not in slots.taken:
                return
            slots.taken.discard(request)
            slots.low.discard(request)
            self._total -= 1
        if self._holding:
            self._wake()

    def due(self) -> Iterator[Delivery]:
        """Yield the kept calls that may run now, each with its slot reserved."""
        while True:
            with self._lock:
                slots = self._next()
                if slots is None:
                    return
                request = self._pick(slots)
                if not slots.held:
                    del self._holding[slots.lane.name]
                self._reserve(slots, request)
            yield request

    def give_up_held(self, lane: str | None = None) -> list[Delivery]:
        """Return the calls that are kept, of one lane or of all, and keep them no more."""
        with self._lock:
            names = list(self._holding) if lane is None else [lane]
            given_up = [request for name in names for request in self.lanes[name].held]
            for name in names:
                self.lanes[name].held.clear()
                self._holding.pop(name, None)
        return given_up

    def limit_of(self, lane: Lane) -> int:
        """Return how many calls of *lane* this worker may run at once now."""
        # A worker may be started with fewer slots than its lane has: celery worker -c.
        return int(min(self.lanes[lane.name].limit, self.capacity))

    def set_limit(self, lane: str, limit: int) -> None:
        """Let *limit* calls of *lane* run at once; those above it run to their end."""
        self.lanes[lane].limit = limit
        self._wake()

    def reserved(self) -> list[Delivery]:
        """Return the calls that have a slot."""
        with self._lock:
            return [request for slots in self.lanes.values() for request in slots.taken]

    def full(self) -> list[tuple[str, list[Delivery]]]:
        """Return the lanes that could start no call now, each with the calls that it runs."""
        with self._lock:
            full = [s for s in self.lanes.values() if s.taken and not self._may_take(s)]
            return [(slots.lane.name, list(slots.taken)) for slots in full]

    def taken(self) -> Counter[str]:
        """Return the slots that are reserved, by lane."""
        return Counter({name: len(slots.taken) for name, slots in self.lanes.items()})

    def held(self) -> Counter[str]:
        """Return the calls that are kept until a slot is free, by lane."""
        return Counter({name: len(slots.held) for name, slots in self.lanes.items()})

    def low_is_due(self, lane: str) -> bool:
        """Return whether *lane* has started no call of low priority for too long."""
        return monotonic() - self.lanes[lane].low_at > self._aging

    def _pick(self, slots: LaneSlots) -> Delivery:
        """Take the kept call whose turn it is: by priority, and by arrival within each."""
        if self._priority is None:
            return slots.held.popleft()
        order = [Priority.HIGH, Priority.NORMAL, Priority.LOW]
        if self.low_is_due(slots.lane.name):
            order.insert(0, order.pop())
        places = [order.index(self._priority(request)) for request in slots.held]
        place = places.index(min(places))
        request = slots.held[place]
        del slots.held[place]
        return request

    def _reserve(self, slots: LaneSlots, request: Delivery) -> None:
        slots.taken.add(request)
        self._total += 1
        if self._priority is None:
            return
        if self._priority(request) is Priority.LOW:
            slots.low.add(request)
            slots.low_at = monotonic()
        else:
            slots.started += 1

    def _may_take(self, slots: LaneSlots) -> bool:
        taken, size = len(slots.taken), self._size()
        if self._total >= size or taken >= slots.most:
            return False
        if taken < slots.keeps:
            return True
        # What other lanes never lend stays free for them.
        owed = sum(other.owed() for other in self.lanes.values() if other is not slots)
        if self._total + owed >= size:
            return False
        return taken < slots.limit or self._is_quick(slots.lane.name)

    def _is_quick(self, lane: str) -> bool:
        p95 = self._p95(lane)
        return p95 is not None and p95 <= BORROW_SECONDS

    def _next(self) -> LaneSlots | None:
        """Return the lane whose turn it is: below what it keeps, else the least full, first."""
        if not self._holding:
            return None
        ready = [slots for slots in self._holding.values() if self._may_take(slots)]
        return min(ready, key=LaneSlots.fullness, default=None)
