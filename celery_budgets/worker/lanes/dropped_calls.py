"""Calls that the pool has dropped from its books at a reconnect, and that may run all the same.

When the connection to the broker is lost, Celery drops every call that no process has accepted
(celery.concurrency.asynpool.AsynPool.flush): its message comes again. One whose message was on
its way to a process just then begins nevertheless, and where that process is not heard of in time
(:mod:`celery_budgets.worker.pool.started_calls`), nobody hears of its end. Until its process has
written that it ended, it keeps its slot.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING

from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.lanes.lane_slots import WorkerSlots

if TYPE_CHECKING:
    from celery_budgets.worker.request import BudgetedRequest

__all__ = ["DroppedCalls"]

#: How long a process may take to begin with a message that was on its way, seconds.
BEGIN_SECONDS = 2.0


class DroppedCalls:
    """Gives the slots of dropped calls back when they do not run, or no longer.

    Args:
        slots: Where they have a slot.
        roster: Reads what the processes have written of them.
    """

    def __init__(self, slots: WorkerSlots, roster: Roster) -> None:
        self._slots = slots
        self._roster = roster
        self._since: dict[BudgetedRequest, float] = {}

    def add(self, requests: Iterable[BudgetedRequest]) -> None:
        """Note calls that have just been dropped."""
        for request in requests:
            self._since.setdefault(request, monotonic())

    def __contains__(self, request: BudgetedRequest) -> bool:
        return request in self._since

    def look(self) -> None:
        """Give back the slots of those that do not run."""
        for request, since in list(self._since.items()):
            age = monotonic() - since
            longest = BEGIN_SECONDS + request.limits.hard
            if age > BEGIN_SECONDS and (age > longest or not self._runs(request)):
                del self._since[request]
                self._slots.release(request)

    def _runs(self, request: BudgetedRequest) -> bool:
        flights = self._roster.flights
        if flights is None:
            return False
        found = (flights.read(pid, request.id) for pid in flights.pids())
        return any(flight is not None and not flight.ended for flight in found)
