"""Recovers slots of calls that the pool no longer runs, as a safety net.

The pool reports the end of a call by a callback. If a callback is missing (a fault of ours, of
Celery's, or of a program's own pool), the call would hold its slot for ever. So the calls that hold
a slot are compared with the jobs of the pool every few seconds; a call without a job in two
comparisons is logged and settled as ``worker_lost``. Without such a fault nothing happens.

Runs in the worker's event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from celery.exceptions import WorkerLostError

from celery_budgets.model.outcomes import Outcome
from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.lanes.lane_slots import WorkerSlots
from celery_budgets.worker.pool.jobs import job_of, runs

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["SlotRecovery"]

logger = logging.getLogger(__name__)

#: Seconds between two comparisons: a slot is recovered after at most twice this.
EVERY = 5.0


class SlotRecovery:
    """Finds calls that hold a slot and have no job in the pool.

    Args:
        slots: The slots of the worker.
        roster: The calls of the worker, which counts recovered slots.
        is_waiting: Returns whether a call waits for a place in the pool, or was dropped by the
            pool and may still run.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        slots: WorkerSlots,
        roster: Roster,
        is_waiting: Callable[[Delivery], bool],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._slots = slots
        self._roster = roster
        self._is_waiting = is_waiting
        self._clock = clock
        self._looked_at = clock()
        self._missing: set[Delivery] = set()

    def look(self) -> None:
        """Settle the calls whose jobs were missing at the last comparison, and still are."""
        now = self._clock()
        if now - self._looked_at < EVERY:
            return
        self._looked_at = now
        held = {*self._slots.reserved(), *list(self._roster.in_hand.values())}
        missing = {request for request in held if not self._is_known(request)}
        for request in missing & self._missing:
            self._recover(request)
        self._missing = missing - self._missing

    def lose_connection(self) -> None:
        """Reset: Celery drops jobs when the connection is lost, and reports that elsewhere."""
        self._missing.clear()
        self._looked_at = self._clock()

    def _is_known(self, request: Delivery) -> bool:
        job = job_of(request)
        return (job is not None and runs(job)) or self._is_waiting(request)

    def _recover(self, request: Delivery) -> None:
        logger.error(
            "budgets.slot_recovered task=%s task_id=%s lane=%s: the pool has no job for this call",
            request.name, request.id, request.lane.name,
        )  # fmt: skip
        error = WorkerLostError("The pool has lost this call: it did not report its end.")
        request.end_killed(error, Outcome.WORKER_LOST)
        # Releases the slot of a terminated call, too, which had its outcome before.
        request.comes_back()
        self._roster.recovered(request)
        self._slots.release(request)
