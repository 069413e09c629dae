"""Changes how many calls of a lane run at once in a running worker.

The new limit survives a reconnect and lasts until the worker restarts, since it is stored nowhere
else. Running calls above a lowered limit finish.

Runs in the worker's event loop. See also: :mod:`celery_budgets.worker.lanes.lane_slots`, which
holds the limits, and :mod:`celery_budgets.worker.remote.lane_commands`, the remote control
commands.
"""

from __future__ import annotations

import logging
from typing import Any

from celery_budgets.errors import ConfigurationError
from celery_budgets.model.lanes import Lane, Lanes
from celery_budgets.worker.lanes.lane_consumer import LaneConsumer
from celery_budgets.worker.lanes.lane_slots import WorkerSlots
from celery_budgets.worker.lanes.queue_pauses import QueuePauses
from celery_budgets.worker.pool.size import GROWING_POOLS, grow, pool_name, slots_of

__all__ = ["LaneLimits"]

logger = logging.getLogger(__name__)


class LaneLimits:
    """Changes the limits of one worker's lanes.

    Args:
        consumer: The Celery consumer.
        lanes: The lanes of the app.
        slots: The limits in force.
        queue_pauses: The queues of the worker, to find the lanes that it serves.
    """

    def __init__(
        self, consumer: Any, lanes: Lanes, slots: WorkerSlots, queue_pauses: QueuePauses
    ) -> None:
        self._consumer = consumer
        self._lanes = lanes
        self._slots = slots
        self._queue_pauses = queue_pauses
        #: The only lane of the worker, if it uses Celery's own consumer with a changed limit.
        self._lone: Lane | None = None

    def set(self, lane: Lane, limit: int) -> None:
        """Let *limit* calls of *lane* run at once from now on; grow the pool if necessary.

        Raises:
            ConfigurationError: The limit is invalid, or not possible in this worker.
        """
        ConfigurationError.raise_if(filter(None, [self._refusal(lane, limit)]))
        before, missing = self._slots.limit_of(lane), self._missing(lane, limit)
        if missing:
            grow(self._consumer.pool, self._pool_kind, missing)
            self._slots.capacity += missing
        self._slots.set_limit(lane.name, limit)
        # Not here: kombu may be in the middle of reading from the broker.
        self._consumer.call_soon(self._count, lane)
        logger.info(
            "budgets.lane_limit_set lane=%s concurrency=%s before=%s slots=%s",
            lane.name, limit, before, slots_of(self._consumer.pool),
        )  # fmt: skip

    def look(self) -> None:
        """Lower the broker's count again, which Celery restores to the pool's size.

        After a reconnect, one by one (Consumer._restore_prefetch_count_after_connection_restart).
        """
        if self._lone is not None and self._consumer.initial_prefetch_count > self._ahead():
            self._count_all()

    @property
    def _pool_kind(self) -> str:
        return pool_name(self._consumer.controller.pool_cls)

    def _limits(self) -> dict[str, int]:
        """Return the limits in force of the lanes that this worker serves."""
        served = self._queue_pauses.lanes_of(self._lanes)
        return {lane.name: self._slots.lanes[lane.name].limit for lane in served}

    def _refusal(self, lane: Lane, limit: int) -> str | None:
        """Return why *lane* cannot have *limit*, with the remedy, or ``None``."""
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            return f"lane {lane.name!r}: concurrency {limit!r}: give a whole number of 1 or more"
        if self._consumer.controller.autoscaler is not None:
            return (
                f"lane {lane.name!r}: the worker's autoscaler sizes its pool; start the worker "
                "without --autoscale"
            )
        if lane.min is not None and limit < lane.min:
            return (
                f"lane {lane.name!r}: concurrency {limit} is below its min ({lane.min}); "
                f"give {lane.min} or more"
            )
        total = sum((self._limits() | {lane.name: limit}).values())
        most = self._lanes.global_concurrency
        if total > most:
            return (
                f"lane {lane.name!r}: with concurrency {limit} the lanes of this worker add up to "
                f"{total}, above budgets_global_concurrency ({most}); give at most "
                f"{most - total + limit}, lower another lane first, or raise that setting"
            )
        if self._missing(lane, limit) and self._pool_kind not in GROWING_POOLS:
            return (
                f"lane {lane.name!r}: concurrency {limit} is above what the pool "
                f"{self._pool_kind} runs at once ({slots_of(self._consumer.pool)}); start the "
                "worker with -P prefork, threads or gevent"
            )
        return None

    def _missing(self, lane: Lane, limit: int) -> int:
        """Return how many slots the pool needs in addition for *lane* to have *limit*.

        A pool that was started smaller than the sum of its lanes (``celery worker -c``) stays
        smaller by that difference, but not below the limit itself.
        """
        limits, size = self._limits(), slots_of(self._consumer.pool)
        raised = limit - limits[lane.name]
        total = sum(limits.values()) + raised
        return max(limit, min(total, size + raised), size) - size

    def _count(self, lane: Lane) -> None:
        """Adjust the prefetch count of *lane* to its limit."""
        consumer = self._consumer.task_consumer
        if isinstance(consumer, LaneConsumer):
            for queue in self._queue_pauses.queues_of(self._lanes, lane):
                consumer.recount(queue)
        elif list(self._limits()) == [lane.name]:
            self._lone = lane
            self._count_all()

    def _counts_by_consumer(self) -> bool:
        """Return whether the broker counts per consumer: RabbitMQ, with quorum queues."""
        on_rabbitmq = self._consumer.connection.transport.driver_type == "amqp"
        return on_rabbitmq and getattr(self._consumer, "qos_global", None) is False

    def _ahead(self) -> int:
        assert self._lone is not None
        most = min(self._slots.lanes[self._lone.name].most, slots_of(self._consumer.pool))
        return int(most * self._consumer.prefetch_multiplier)

    def _count_all(self) -> None:
        """Set the count of Celery's own consumer, for all of its queues.

        Mirrors celery.worker.consumer.Consumer._update_prefetch_count, which goes by the pool's
        size. The count moves by a difference: messages with an ETA have raised it too.
        """
        consumer = self._consumer
        change = self._ahead() - consumer.initial_prefetch_count
        if not consumer.initial_prefetch_count or not change:
            return  # 0: no limit at all (worker_prefetch_multiplier)
        consumer.initial_prefetch_count += change
        move = (
            consumer.qos.increment_eventually if change > 0 else consumer.qos.decrement_eventually
        )
        move(abs(change))
        if self._counts_by_consumer():
            # The broker reads the count when a consumer begins.
            consumer.qos.update()
            consumer.task_consumer.cancel()
            consumer.task_consumer.consume()
