"""``Prefetch``: how many messages of each queue the broker sends ahead of the calls that run.

Runs in the worker main process, in its event loop. See also:
:mod:`celery_budgets.worker.lanes.lane_consumer`, which tells the broker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from celery_budgets.model.lanes import Lanes
from celery_budgets.worker.lanes.lane_slots import WorkerSlots
from celery_budgets.worker.lanes.slots_of_lane import LaneSlots

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery
    from celery_budgets.worker.lanes.low_priority import LowPriorityQueues

__all__ = ["Prefetch"]

#: Most messages beyond the usual, and the first step, while nearly all are put aside.
MOST_IN_FLOOD, FIRST_IN_FLOOD = 64, 16


class Prefetch:
    """Counts messages.

    A worker puts a flood of one key aside (:mod:`celery_budgets.shared_state.asides`), and what is
    behind it waits until it has: meanwhile it is sent more at once than its slots would take.

    Args:
        lanes: Those of the app.
        slots: Those of this worker.
        multiplier: Returns ``worker_prefetch_multiplier``; 0: the broker sends all it has.
    """

    def __init__(self, lanes: Lanes, slots: WorkerSlots, multiplier: Callable[[], int]) -> None:
        self._lanes = lanes
        self._slots = slots
        self._multiplier = multiplier
        #: Deliveries that wait for their ETA, by queue: the broker counts them as unacknowledged.
        self.later: Counter[str] = Counter()
        #: Whether the broker counts per consumer, which does not change while it consumes.
        self.by_consumer = False
        self.low: LowPriorityQueues | None = None

    def of(self, queue: str) -> int | None:
        """Return the count of *queue*, 0 if it is unlimited; ``None`` if it is of no lane."""
        lane = self._lanes.of_queue(queue)
        if lane is None:
            return None
        slots = self._slots.lanes[lane.name]
        later = 0 if self.by_consumer else self.later[queue]
        if queue != lane.queue and self.low is not None:
            return self.low.prefetch(lane) + later
        usual = self.usual(slots)
        return usual + later + slots.in_flood if usual else 0

    def usual(self, slots: LaneSlots) -> int:
        """Return the count of a lane's queue, but for its ETAs and floods."""
        return slots.most * self._multiplier()

    def put_aside(self, stepped: Iterable[Delivery]) -> list[str]:
        """Take note of calls that were put aside; return the queues with another count now."""
        raised = []
        for lane in {request.lane.name: request.lane for request in stepped}.values():
            slots = self._slots.lanes[lane.name]
            slots.note_flood()
            more = min(MOST_IN_FLOOD, max(FIRST_IN_FLOOD, 2 * slots.in_flood))
            if more > slots.in_flood and not self.by_consumer:
                slots.in_flood = more
                raised.append(lane.queue)
        return raised

    def floods_over(self) -> list[str]:
        """Return the queues with another count now, because no calls are put aside any more."""
        over = [s for s in self._slots.lanes.values() if s.in_flood and not s.flows]
        for slots in over:
            slots.end_flood()
        return [slots.lane.queue for slots in over]
