"""The bootstep by which a worker knows how many messages wait for its lanes at the broker.

Runs in the worker main process.

See also: :mod:`celery_budgets.worker.backlog`, which does the work.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps

from celery_budgets.worker.backlog.reader import TICK, Queues, Reader
from celery_budgets.worker.runtime import runtime_of
from celery_budgets.worker.transport.renewing.unacked_index import has_index

__all__ = ["BacklogStep"]

logger = logging.getLogger(__name__)

#: How long a broker may take to answer, seconds.
ANSWER_SECONDS = 3.0


class BacklogStep(bootsteps.StartStopStep):
    """Starts the thread that reads, and tells other workers; with ``budgets_backlog``."""

    label = "Budgets backlog"
    requires = ("celery_budgets.worker.bootsteps.lanes_step:LanesStep",)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._consumer = c
        self._runtime = runtime_of(c.app)
        # Celery calls include_if() after it has created the step.
        self.enabled = self._runtime.settings.backlog and bool(self._runtime.served)
        self._reader = Reader(self._runtime.backlog)
        self._timer_entry: Any = None

    def start(self, c: Any) -> None:
        """Read over the new connection; again after each reconnect."""
        self._disarm(c)
        queues = _queues_at(c.connection)
        if queues is None:
            return  # a broker that does not tell: the backlog is unknown
        self._reader.attach(queues)
        if not c.gossip.enabled:
            return  # nobody hears
        self._runtime.peers.listen(c.gossip)
        self._timer_entry = c.timer.call_repeatedly(TICK, c.call_soon, (self._tell,))

    def stop(self, c: Any) -> None:
        """Tell no more; what others read is still known."""
        self._disarm(c)

    def shutdown(self, c: Any) -> None:
        """Read no more."""
        self._reader.stop()

    def _tell(self) -> None:
        try:
            self._runtime.peers.tell(self._consumer.event_dispatcher)
        except Exception:
            # Heartbeats go the same way, and have Celery reconnect where it is broken.
            logger.debug("budgets.peers_not_told", exc_info=True)

    def _disarm(self, c: Any) -> None:
        if self._timer_entry is not None:
            c.timer.cancel(self._timer_entry)
            self._timer_entry = None


def _queues_at(connection: Any) -> Queues | None:
    """Return the reader of the broker's kind; ``None`` if there is none."""
    if has_index(connection.default_channel):
        # Not before: an app on RabbitMQ may have no redis-py.
        from celery_budgets.worker.backlog.redis_queues import RedisQueues

        return RedisQueues(connection.default_channel, ANSWER_SECONDS)
    if connection.transport.driver_type == "amqp":
        from celery_budgets.worker.backlog.amqp_queues import AmqpQueues

        return AmqpQueues(connection, ANSWER_SECONDS)
    return None
