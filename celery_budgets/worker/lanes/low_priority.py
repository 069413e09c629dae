"""Calls of low priority: when a worker turns to them, on each broker.

A broker serves strictly by priority, and would leave low calls waiting for as long as others
come. Once per ``budgets_priority_aging`` a busy lane therefore starts one all the same.

Covers: on Redis, the order in which a lane's lists are asked; on RabbitMQ, when the queue of low
calls is consumed. Which of the calls in hand goes next is
:mod:`celery_budgets.worker.lanes.lane_slots`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import monotonic

from celery_budgets.model.lanes import Lane
from celery_budgets.model.priority import Broker, Priority, level_of, low_queue
from celery_budgets.worker.lanes.lane_slots import WorkerSlots
from celery_budgets.worker.lanes.queue_pauses import QueuePauses

__all__ = ["LOOK", "AgingSteps", "LowPriorityQueues"]

#: How often it is looked whether a lane is idle, seconds.
LOOK = 0.1
#: How long a lane must have had room for other calls, seconds: from an acknowledgement to the next
#: delivery a busy broker may take its time.
IDLE_SECONDS = 1.0
#: Why a queue of low calls is paused (worker.consuming).
_REASON = "priority"


class AgingSteps(list[int]):
    """The steps of a Redis channel, low ones first where a low call is due.

    kombu.transport.redis.Channel goes through ``priority_steps`` for each BRPOP, and Redis takes
    from the first list in it that has something. Where it sorts a message in it searches by
    index (``Channel.priority``), and that order stays ascending.

    Args:
        steps: Those of the channel.
        is_due: Says whether a low call is due.
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
    """The queues of low calls of one worker, on RabbitMQ: paused while their lane is busy.

    Args:
        lanes: The lanes that the worker serves.
        consuming: Pauses and resumes queues.
        slots: Knows what runs, and when a low call is due.
    """

    def __init__(self, lanes: Iterable[Lane], consuming: QueuePauses, slots: WorkerSlots) -> None:
        self._lanes = list(lanes)
        self._consuming = consuming
        self._slots = slots
        #: How many had started, and when that was seen to have changed last, by lane.
        self._started: dict[str, tuple[int, float]] = {}
        for lane in self._lanes:
            consuming.withhold(low_queue(lane.queue), _REASON)

    def look(self) -> None:
        """Consume the low calls of the lanes that are idle, or owe one; call each LOOK seconds."""
        if not self._consuming.connected:
            return
        for lane in self._lanes:
            queue = low_queue(lane.queue)
            waits = _REASON in self._consuming.paused.get(queue, ())
            wanted = self._is_idle(lane.name) or self._slots.low_is_due(lane.name)
            if wanted and waits:
                self._consuming.resume(_REASON, [queue])
            elif not wanted and not waits:
                self._consuming.pause([queue], _REASON)

    def _is_idle(self, lane: str) -> bool:
        """Return whether the broker has had a slot to fill with other calls, and filled none."""
        slots = self._slots.lanes[lane]
        started, since = self._started.get(lane, (-1, 0.0))
        if started != slots.started or not slots.has_room_for_others():
            self._started[lane] = slots.started, monotonic()
            return False
        return monotonic() - since > IDLE_SECONDS
