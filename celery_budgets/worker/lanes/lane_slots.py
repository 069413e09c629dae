"""Slots: limits how many calls of each lane run at once in this worker, and selects the next.

A slot is reserved before a call enters the pool and released when the call has its outcome, also
if its process has died. A call whose lane is full is held here, in order, until a slot is free;
the broker sends few messages beyond the slots (:mod:`celery_budgets.worker.lanes.lane_consumer`).

Covers: limits per lane and over all, borrowing, priorities, fairness. Plain objects.
Does not cover: passing calls to the pool (:mod:`celery_budgets.worker.bootsteps.lanes_step`).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from celery_budgets.model.lanes import Lane
from celery_budgets.model.priority import Priority
from celery_budgets.worker.lanes.slots_of_lane import LaneSlots
from celery_budgets.worker.limits.call_demands import Demands
from celery_budgets.worker.limits.fleet_leases import FleetLeases

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["BORROW_SECONDS", "WorkerSlots"]

#: A lane whose 95th percentile of durations is above this, in seconds, borrows nothing: a borrowed
#: slot is returned only when the call in it has ended.
BORROW_SECONDS = 10.0
#: A lane up to whose 95th percentile, in seconds, its calls pass places of limits on.
BRIEF_SECONDS = 0.1


class WorkerSlots:
    """Reserves slots for calls.

    Args:
        lanes: The lanes of the app.
        size: Returns how many calls the pool runs at once, now.
        p95: Returns the 95th percentile of a lane's durations, seconds; ``None`` before its
            first call.
        wake: Called, from any thread, to have :meth:`due` run soon.
        priority: Returns the priority of a call; ``None`` if the app has no priorities.
        aging: Longest time in which a busy lane starts no call of low priority, seconds.
        capacity: Calls that the worker may run at once, over all its lanes.
        leases: Places of limits over the fleet; ``None`` if no lane has any.
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
        leases: FleetLeases | None = None,
    ) -> None:
        self.lanes = {lane.name: LaneSlots(lane) for lane in lanes}
        self._size = size
        self._p95 = p95
        self._wake = wake
        self._priority = priority
        self._aging = aging
        self._leases = leases
        #: Calls that the worker may run at once, over all its lanes.
        self.capacity = capacity
        #: Called when a call of low priority is given a slot.
        self.on_low: Callable[[], object] = int
        self._total = 0
        #: The lanes that hold calls.
        self._holding: dict[str, LaneSlots] = {}
        # Calls end in pool threads, and begin in the event loop.
        self._lock = threading.Lock()

    def take(self, request: Delivery) -> bool:
        """Reserve a slot for *request*; if none is free, hold it until :meth:`due` yields it."""
        slots = self.lanes[request.lane.name]
        with self._lock:
            if request in slots.taken:
                return True
            turn_of = self._next()
            if turn_of is None and not slots.held and self._may_start(slots, request):
                self._reserve(slots, request)
                return True
            slots.held.append(request)
            self._holding[slots.lane.name] = slots
            if self._leases is not None:
                if turn_of is None and self._may_start(slots, request):
                    turn_of = slots  # it may go before those that wait for other limits
                self._fit_leases(self._leases)
        if turn_of is not None:
            self._wake()
        return False

    def release(self, request: Delivery, *, succeeded: bool = False) -> None:
        """Release the slot of *request*, if it has one; held calls may be due then."""
        slots = self.lanes[request.lane.name]
        with self._lock:
            if request not in slots.taken:
                return
            slots.taken.discard(request)
            slots.low.discard(request)
            self._total -= 1
            if self._leases is not None:
                self._leases.free(request, passed_on=succeeded and slots.brief)
        if self._holding:
            self._wake()

    def due(self) -> Iterator[Delivery]:
        """Yield the held calls that may run now, each with a reserved slot."""
        while True:
            with self._lock:
                slots = self._next()
                if slots is None:
                    if self._leases is not None:
                        self._fit_leases(self._leases)
                    return
                request = self._pick(slots)
                if not slots.held:
                    del self._holding[slots.lane.name]
                self._reserve(slots, request)
            yield request

    def stepped_aside(self) -> list[Delivery]:
        """Remove and return the held calls that wait aside, in Redis, for a key of a limit."""
        if self._leases is None:
            return []
        with self._lock:
            stepped = self._leases.stepped_aside()
            for request in stepped:
                slots = self.lanes[request.lane.name]
                slots.held.remove(request)
                if not slots.held:
                    del self._holding[slots.lane.name]
        return stepped

    def give_up_held(self, lane: str | None = None) -> list[Delivery]:
        """Remove and return the held calls, of one lane or of all."""
        with self._lock:
            names = list(self._holding) if lane is None else [lane]
            given_up = [request for name in names for request in self.lanes[name].held]
            for name in names:
                self.lanes[name].held.clear()
                self._holding.pop(name, None)
            if self._leases is not None:
                self._fit_leases(self._leases)
        return given_up

    def has_room(self, lane: str) -> bool:
        """Return whether a call of *lane* that arrived now would get a slot."""
        with self._lock:
            return self._may_take(self.lanes[lane])

    def limit_of(self, lane: Lane) -> int:
        """Return how many calls of *lane* this worker may run at once now."""
        # A worker may be started with fewer slots than its lane has: celery worker -c.
        return int(min(self.lanes[lane.name].limit, self.capacity))

    def set_limit(self, lane: str, limit: int) -> None:
        """Let *limit* calls of *lane* run at once; running calls above it finish."""
        self.lanes[lane].limit = limit
        self._wake()

    def reserved(self) -> list[Delivery]:
        """Return the calls that have a slot."""
        with self._lock:
            return [request for slots in self.lanes.values() for request in slots.taken]

    def full(self) -> list[tuple[str, list[Delivery]]]:
        """Return the lanes that can start no call now, each with the calls that it runs."""
        with self._lock:
            full = [s for s in self.lanes.values() if s.taken and not self._may_take(s)]
            return [(slots.lane.name, list(slots.taken)) for slots in full]

    def taken(self) -> Counter[str]:
        """Return the slots that are reserved, by lane."""
        return Counter({name: len(slots.taken) for name, slots in self.lanes.items()})

    def held(self) -> Counter[str]:
        """Return the number of held calls, by lane."""
        return Counter({name: len(slots.held) for name, slots in self.lanes.items()})

    def held_of_id(self, task_id: str) -> list[tuple[Delivery, int]]:
        """Return the held calls of *task_id*, each with how many of its lane start before it."""
        with self._lock:
            return [
                (request, self._before(slots, place))
                for slots in self._holding.values()
                for place, request in enumerate(slots.held)
                if request.id == task_id
            ]

    def waiting_for_limits(self) -> Counter[str]:
        """Return how many held calls wait for a limit over the fleet, by its name."""
        if self._leases is None:
            return Counter()
        with self._lock:
            held = [request for slots in self._holding.values() for request in slots.held]
            return Counter(found[0] for found in map(self._leases.refused, held) if found)

    def low_is_due(self, lane: str) -> bool:
        """Return whether *lane* has started no call of low priority for too long."""
        return monotonic() - self.lanes[lane].low_at > self._aging

    def _before(self, slots: LaneSlots, place: int) -> int:
        """Return how many held calls of a lane start before the one at *place*."""
        if self._priority is None:
            return place
        order = list(Priority)
        levels = [order.index(self._priority(request)) for request in slots.held]
        return sum((level, at) < (levels[place], place) for at, level in enumerate(levels))

    def _pick(self, slots: LaneSlots) -> Delivery:
        """Remove and return the next held call: by priority, then by arrival."""
        if self._priority is None and self._leases is None:
            return slots.held.popleft()
        if self._priority is None:
            request = next(self._ready(slots))
            slots.held.remove(request)
            return request
        ready = list(self._ready(slots))
        order = [Priority.HIGH, Priority.NORMAL, Priority.LOW]
        if self.low_is_due(slots.lane.name):
            order.insert(0, order.pop())
        places = [order.index(self._priority(request)) for request in ready]
        request = ready[places.index(min(places))]
        slots.held.remove(request)
        return request

    def _ready(self, slots: LaneSlots) -> Iterator[Delivery]:
        """Return the held calls of a lane for which there is a place in their limits."""
        return iter(slots.held) if self._leases is None else self._leases.allowed(slots.held)

    def _may_start(self, slots: LaneSlots, request: Delivery) -> bool:
        return self._may_take(slots) and (self._leases is None or self._leases.allows(request))

    def _fit_leases(self, leases: FleetLeases) -> None:
        """Have as many places asked for as held calls could start now."""
        startable: Counter[Demands] = Counter()
        for slots in self._holding.values():
            slots.brief = self._is_up_to(BRIEF_SECONDS, slots.lane.name)
            if self._may_take(slots):
                most = slots.most if len(slots.taken) >= slots.limit else slots.limit
                room = min(most - len(slots.taken), self._size() - self._total)
                needed = filter(None, map(leases.of, slots.held))
                startable.update(islice(needed, max(0, room)))
        leases.fit(startable)

    def _reserve(self, slots: LaneSlots, request: Delivery) -> None:
        slots.taken.add(request)
        self._total += 1
        if self._leases is not None:
            self._leases.bind(request)
        if self._priority is None:
            return
        if self._priority(request) is Priority.LOW:
            slots.low.add(request)
            slots.low_at = monotonic()
            self.on_low()
        else:
            slots.started += 1

    def _may_take(self, slots: LaneSlots) -> bool:
        taken, size = len(slots.taken), self._size()
        if self._total >= size or taken >= slots.most:
            return False
        if taken < slots.keeps:
            return True
        # The slots that other lanes never lend stay free for them.
        owed = sum(other.owed() for other in self.lanes.values() if other is not slots)
        if self._total + owed >= size:
            return False
        return taken < slots.limit or self._is_up_to(BORROW_SECONDS, slots.lane.name)

    def _is_up_to(self, seconds: float, lane: str) -> bool:
        p95 = self._p95(lane)
        return p95 is not None and p95 <= seconds

    def _next(self) -> LaneSlots | None:
        """Return the next lane: one below the slots it keeps, else the least full one."""
        if not self._holding:
            return None
        ready = [slots for slots in self._holding.values() if self._may_take(slots)]
        if self._leases is not None:
            ready = [slots for slots in ready if next(self._ready(slots), None) is not None]
        return min(ready, key=LaneSlots.fullness, default=None)
