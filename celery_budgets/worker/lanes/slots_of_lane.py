"""The slots of one lane in one worker: who has one, who waits for one, and what may be lent.

Lives in the worker main process. See also: :mod:`celery_budgets.worker.lanes.lane_slots`, which
grants them.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from celery_budgets.model.lanes import Lane

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["LaneSlots"]


class LaneSlots:
    """The slots of one lane.

    Args:
        lane: Its concurrency, and what it may lend and borrow.
    """

    __slots__ = ("brief", "held", "lane", "limit", "low", "low_at", "served", "started", "taken")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        #: Calls that may run at once, without borrowed slots.
        self.limit = lane.concurrency
        #: Whether this worker consumes its queue; no slots are kept for other lanes.
        self.served = True
        #: Whether its calls are so short that they pass places of limits over the fleet on.
        self.brief = False
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

    def owed(self) -> int:
        """Return the slots that must stay free for this lane."""
        return max(0, self.keeps - len(self.taken)) if self.served else 0

    def has_room_for_others(self) -> bool:
        """Return whether calls of higher than low priority would find a slot, and none waits."""
        return len(self.taken) - len(self.low) < self.limit and not self.held

    def fullness(self) -> tuple[bool, float]:
        """Return the sort key of lanes when slots are scarce: the lowest gets the next slot."""
        taken = len(self.taken)
        return taken >= self.keeps, taken / self.limit
