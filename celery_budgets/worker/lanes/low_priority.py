"""Decides when a worker fetches calls of low priority, on each broker.

A broker serves strictly by priority, so calls of low priority starve while others arrive. A busy
lane therefore starts one of them once per ``budgets_priority_aging``.

Covers: on Redis, the order in which a lane's lists are read; on RabbitMQ, when the queue of low
priority is consumed. :mod:`celery_budgets.worker.lanes.lane_slots` selects among received calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import monotonic

from celery_budgets.model.lanes import Lane
from celery_budgets.model.priority import Broker, Priority, level_of, low_queue
from celery_budgets.worker.lanes.lane_slots import WorkerSlots
from celery_budgets.worker.lanes.queue_pauses import QueuePauses

__all__ = ["LOOK", "AgingSteps", "LowPriorityQueues"]

#: Interval of checks whether a lane is idle, seconds.
LOOK = 0.1
#: How long a lane must have had free slots to be idle, seconds: a busy broker may take a while
#: between an acknowledgement and the next delivery.
IDLE_SECONDS = 1.0
#: The reason for pausing a queue of low priority (worker.lanes.queue_pauses).
_REASON = "priority"


class AgingSteps(list[int]):
    """The priority steps of a Redis channel, in reverse order while a low call is due.

    kombu.transport.redis.Channel iterates over ``priority_steps`` for each BRPOP, and Redis pops
    from the first list that is not empty. To publish a message, kombu searches by index
    (``Channel.priority``), for which the order stays ascending.

    Args:
        steps: The steps of the channel.
        is_due: Returns whether a low call is due.
    """

    def __init__(self, steps: Iterable[int], is_due: Callable[[], bool]) -> None:
        super().__init__(steps)
        self._is_due = is_due

    def __iter__(self) -> Iterator[int]:
        steps = [self[place] for place in range(len(self))]
        if self._is_due():
            steps.sort(key=lambda step: level_of(step, Broker.REDIS) is not Priority.LOW)
        return iter(steps)


class LowPriorityQueues:
    """The queues of low priority on RabbitMQ, which are paused while their lane is busy.

    Args:
        lanes: The lanes that the worker serves.
        queue_pauses: Pauses and resumes queues.
        slots: The slots of the worker, which determine when a low call is due.
    """

    def __init__(
        self, lanes: Iterable[Lane], queue_pauses: QueuePauses, slots: WorkerSlots
    ) -> None:
        self._lanes = list(lanes)
        self._queue_pauses = queue_pauses
        self._slots = slots
        #: By lane: the number of started calls, and when it was last seen to change.
        self._started: dict[str, tuple[int, float]] = {}
        #: By lane: whether its queue is consumed because it is idle, not for one call that is due.
        self._idle: dict[str, bool] = {}
        for lane in self._lanes:
            queue_pauses.withhold(low_queue(lane.queue), _REASON)

    def look(self) -> None:
        """Consume low calls of lanes that are idle or have one due; called every LOOK seconds."""
        if not self._queue_pauses.connected:
            return
        for lane in self._lanes:
            queue = low_queue(lane.queue)
            waits = _REASON in self._queue_pauses.paused.get(queue, ())
            idle = self._is_idle(lane.name)
            wanted = idle or self._slots.low_is_due(lane.name)
            if waits and wanted:
                self._idle[lane.name] = idle
                self._queue_pauses.resume(_REASON, [queue])
            elif not waits and not (wanted and self._idle.get(lane.name) is idle):
                # One that is still wanted is consumed at the next look, by its other count.
                self._queue_pauses.pause([queue], _REASON)

    def prefetch(self, lane: Lane) -> int:
        """Return how many low calls may be on their way to *lane*: one, unless it is idle.

        The broker sends the next one as soon as one is acknowledged, early where its task says so.
        """
        slots = self._slots.lanes[lane.name]
        return max(1, slots.limit - len(slots.taken)) if self._idle.get(lane.name) else 1

    def _is_idle(self, lane: str) -> bool:
        """Return whether the broker has not filled a free slot with other calls for long."""
        slots = self._slots.lanes[lane]
        started, since = self._started.get(lane, (-1, 0.0))
        if started != slots.started or not slots.has_room_for_others():
            self._started[lane] = slots.started, monotonic()
            return False
        return monotonic() - since > IDLE_SECONDS
