"""The safety net below all slots: a call that the pool no longer runs is settled, and said aloud.

Every end of a call comes from the pool, by a callback. Where one does not come (a fault of ours,
of Celery's, or of a program's own pool), the call would hold its slot for ever. So what has a slot
is compared with what the pool has, every few seconds; what is missing twice is settled as
``worker_lost``. In a worker without such a fault it does nothing.

Runs in the worker's event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from celery.exceptions import WorkerLostError

from celery_budgets.model.outcomes import Outcome
from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.lanes.lane_slots import WorkerSlots

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["SlotRecovery"]

logger = logging.getLogger(__name__)

#: Seconds between two looks: twice this, at most, and the slot is back.
EVERY = 5.0


class SlotRecovery:
    """Finds calls that hold a slot and have no job in the pool.

    Args:
        slots: Who has a slot.
        roster: The calls in hand; recovered slots are counted there.
        is_waiting: Returns whether a call waits for its place in the pool, or was dropped from
            the pool's books and may run all the same.
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
        """Settle the calls that were missing at the last look, and still are."""
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
        """Begin anew: Celery drops jobs when the connection is lost, and says so elsewhere."""
        self._missing.clear()
        self._looked_at = self._clock()

    def _is_known(self, request: Delivery) -> bool:
        job = _job_of(request)
        return (job is not None and _runs(job)) or self._is_waiting(request)

    def _recover(self, request: Delivery) -> None:
        logger.error(
            "budgets.slot_recovered task=%s task_id=%s lane=%s: the pool has no job for this call",
            request.name, request.id, request.lane.name,
        )  # fmt: skip
        error = WorkerLostError("The pool has lost this call: nobody told of its end.")
        request.end_killed(error, Outcome.WORKER_LOST)
        # Whatever it holds by now: one that was terminated had its outcome before.
        request.comes_back()
        self._roster.recovered(request)
        self._slots.release(request)


def _job_of(request: Delivery) -> Any:
    """Return what the pool gave for a call; ``None`` before it has got it, or once it has none.

    Kept on the request where its calls run in this process (worker.settling.contain); Celery keeps
    a weak reference (celery.worker.request.create_request_cls).
    """
    if request.job is not None:
        return request.job
    reference = request._apply_result
    return reference() if reference is not None else None


def _runs(job: Any) -> bool:
    """Return whether a pool still has *job*; of a pool that nobody knows, that it has.

    Reads billiard.pool.ApplyResult, the future of celery.concurrency.thread.ApplyResult, and
    gevent's greenlet.
    """
    if hasattr(job, "_cache"):
        return not job.ready() and job._job in job._cache
    if hasattr(job, "f"):
        return not job.f.done()
    return not getattr(job, "dead", False)
