"""Takes no more work, and stops the worker once the calls that run have ended.

Unlike a warm stop, it leaves the worker in its event loop meanwhile: limits, heartbeats and remote
control work on, so that whoever drains it sees what it waits for.

Lives in the worker main process; called in its event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from celery.worker import state

from celery_budgets.model.lanes import Lane
from celery_budgets.worker.calls.roster import members_of
from celery_budgets.worker.lanes.operator_pauses import OperatorPauses
from celery_budgets.worker.lanes.queue_pauses import QueuePauses

__all__ = ["Leaving"]

logger = logging.getLogger(__name__)

#: Why the queues of no lane are paused.
REASON = "drain"
#: How long an idle worker waits for whoever drains it to ask once more, seconds.
LAST_QUESTION = 5.0


class Leaving:
    """The way out of one worker.

    Args:
        consumer: The Celery consumer.
        pauses: Pauses lanes.
        queue_pauses: Pauses queues.
        served: The lanes that it serves.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        consumer: Any,
        pauses: OperatorPauses,
        queue_pauses: QueuePauses,
        served: Iterable[Lane],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._consumer = consumer
        self._pauses = pauses
        self._queue_pauses = queue_pauses
        self._served = tuple(served)
        self._clock = clock
        self._leaves = False
        self._stops_at: float | None = None
        self._told_idle = True

    def begin(self, *, watched: bool) -> None:
        """Take no more work, and stop when nothing runs any more.

        Args:
            watched: Whether somebody asks again, and is to learn of the end.
        """
        if not self._leaves:
            self._leaves = True
            logger.warning("budgets.leaving running=%s", len(self.running()))
            for lane in self._served:
                self._pauses.pause(lane)
            self._consumer.call_soon(self._pause_others)
        self._told_idle = not watched or not self.running()

    def running(self) -> list[Any]:
        """Return the calls that run, also those of plain tasks."""
        return members_of(state.active_requests)

    def look(self) -> None:
        """Stop the worker if nothing runs; called about once a second."""
        if not self._leaves or self.running():
            self._stops_at = None
            return
        if self._stops_at is None:
            self._stops_at = self._clock() + (0.0 if self._told_idle else LAST_QUESTION)
        if self._told_idle or self._clock() >= self._stops_at:
            # Heard by the event loop, as after SIGTERM (celery.worker.state.maybe_shutdown).
            state.should_stop = 0

    def _pause_others(self) -> None:
        consumed = set(self._consumer.app.amqp.queues.consume_from)
        self._queue_pauses.pause(consumed - set(self._queue_pauses.paused), REASON)
