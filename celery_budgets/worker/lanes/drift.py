"""Detects drift: changes of a running worker's pool and queues by other tools.

Flower and ``celery control`` can grow and shrink a pool, add a consumer and cancel one. Limits
per lane still hold, but the worker differs from its configuration: that is logged once per change,
and shown by ``inspect budgets`` and ``celery lanes status``. Changes by ``celery lanes`` are no
drift.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

from celery_budgets.worker.lanes.lane_slots import WorkerSlots
from celery_budgets.worker.lanes.queue_pauses import QueuePauses
from celery_budgets.worker.pool.size import slots_of

__all__ = ["Difference", "Drift"]

logger = logging.getLogger(__name__)


class Difference(NamedTuple):
    """One difference from the state at the start."""

    text: str
    remedy: str
    #: The queue that is missing; empty if the difference is of the whole worker.
    queue: str = ""


class Drift:
    """Compares a worker with its state at the start.

    Args:
        consumer: The Celery consumer.
        slots: The slots that the pool should have.
        queue_pauses: The pauses of its queues.
    """

    def __init__(self, consumer: Any, slots: WorkerSlots, queue_pauses: QueuePauses) -> None:
        self._consumer = consumer
        self._slots = slots
        self._queue_pauses = queue_pauses
        #: The differences at the last :meth:`look`.
        self._known: tuple[Difference, ...] = ()

    def look(self) -> None:
        """Check again, and log new differences."""
        found = tuple(self.differences())
        for difference in found:
            if difference not in self._known:
                logger.warning("budgets.drift %s; %s", difference.text, difference.remedy)
        if self._known and not found:
            logger.info("budgets.drift_gone")
        self._known = found

    def differences(self) -> Iterator[Difference]:
        """Yield the current differences."""
        yield from self._of_pool()
        changed = self._queue_pauses.drift()
        for queue in changed.get("added", ()):
            yield Difference(
                f"queue {queue} is consumed, and was not at the start",
                f"celery control cancel_consumer {queue}",
            )
        for queue in changed.get("cancelled", ()):
            text = f"queue {queue} is not consumed"
            yield Difference(text, f"celery control add_consumer {queue}", queue)

    def _of_pool(self) -> Iterator[Difference]:
        wanted, now = int(self._slots.capacity), slots_of(self._consumer.pool)
        if self._consumer.controller.autoscaler is not None or not wanted or now == wanted:
            return
        command = f"pool_shrink {now - wanted}" if now > wanted else f"pool_grow {wanted - now}"
        slots = f"{now} slot{'' if now == 1 else 's'}"
        yield Difference(f"{slots} instead of {wanted}", f"celery control {command}")
