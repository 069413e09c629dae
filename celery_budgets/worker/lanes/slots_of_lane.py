"""The slots of one lane in one worker: who has one, who waits for one, and what may be lent.

Lives in the worker main process. See also: :mod:`celery_budgets.worker.lanes.lane_slots`, which
grants them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from celery_budgets.model.lanes import Lane
from celery_budgets.model.priority import Priority

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["LaneSlots", "first_of"]

#: How long after a call was put aside others are expected to be, seconds.
FLOOD_SECONDS = 1.0


class LaneSlots:
    """The slots of one lane.

    Args:
        lane: Its concurrency, and what it may lend and borrow.
    """

    __slots__ = (
        "_flooded_until", "brief", "held", "in_flood", "lane", "limit", "low", "low_at", "served",
        "started", "taken",
    )  # fmt: skip

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        #: Calls that may run at once, without borrowed slots.
        self.limit = lane.concurrency
        #: Whether this worker consumes its queue; no slots are kept for other lanes.
        self.served = True
        #: Whether its calls are so short that they pass places of limits over the fleet on.
        self.brief = False
        #: How many more messages than usual the broker sends, because most are put aside.
        self.in_flood = 0
        self._flooded_until = 0.0
        self.taken: set[Delivery] = set()
        self.held: deque[Delivery] = deque()
        #: The calls of low priority that have a slot.
        self.low: set[Delivery] = set()
        #: Monotonic instant at which a call of low priority was started last.
        self.low_at = monotonic()
        #: Number of calls of other priorities that have started.
        self.started = 0

    @property
    def keeps(self) -> int:
        """Slots that are never lent to another lane."""
        return self.limit if self.lane.min is None else min(self.lane.min, self.limit)

    @property
    def most(self) -> int:
        """Calls that may run at once, including borrowed slots."""
        return max(self.limit, self.lane.max or 0)

    def note_flood(self) -> None:
        """Note that calls were put aside: others may follow."""
        self._flooded_until = monotonic() + FLOOD_SECONDS

    def end_flood(self) -> None:
        """Take as many messages as usual; some more may be on their way."""
        self.in_flood = 0
        self.note_flood()

    @property
    def flows(self) -> bool:
        """Whether calls were put aside a moment ago."""
        return monotonic() < self._flooded_until

    @property
    def is_flooded(self) -> bool:
        """Whether some may have come that another worker has a slot for."""
        return self.in_flood > 0 or self.flows

    def excess(self, usual: int, may_go: Iterable[Delivery]) -> list[Delivery]:
        """Return the last of *may_go*, as many as came beyond *usual*; the flood has passed then.

        Args:
            usual: How many the broker sends otherwise; 0: all it has.
            may_go: Some of those that are held.
        """
        count = len(self.taken) + len(self.held) - usual
        going = [*may_go][-count:] if usual and count > 0 else []
        if going:
            self.end_flood()
        return going

    def owed(self) -> int:
        """Return the slots that must stay free for this lane."""
        return max(0, self.keeps - len(self.taken)) if self.served else 0

    def before(self, place: int, priority: Callable[[Delivery], Priority] | None) -> int:
        """Return how many held calls start before the one at *place*."""
        if priority is None:
            return place
        order = list(Priority)
        levels = [order.index(priority(request)) for request in self.held]
        return sum((level, at) < (levels[place], place) for at, level in enumerate(levels))

    def has_room_for_others(self) -> bool:
        """Return whether calls of higher than low priority would find a slot, and none waits."""
        return len(self.taken) - len(self.low) < self.limit and not self.held

    def fullness(self) -> tuple[bool, float]:
        """Return the sort key of lanes when slots are scarce: the lowest gets the next slot."""
        taken = len(self.taken)
        return taken >= self.keeps, taken / self.limit


def first_of(
    ready: Sequence[Delivery], priority: Callable[[Delivery], Priority], *, low_first: bool
) -> Delivery:
    """Return the call that starts first: by priority, then by arrival."""
    order = [Priority.HIGH, Priority.NORMAL, Priority.LOW]
    if low_first:
        order.insert(0, order.pop())
    places = [order.index(priority(request)) for request in ready]
    return ready[places.index(min(places))]
