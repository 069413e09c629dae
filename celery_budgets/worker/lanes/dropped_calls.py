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

from celery_budgets.execution.flight.recorder import FlightReader
from celery_budgets.worker.lanes.lane_slots import WorkerSlots

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["DroppedCalls"]

#: How long a process may take to begin with a message that was on its way, seconds.
BEGIN_SECONDS = 2.0


class DroppedCalls:
    """Gives the slots of dropped calls back when they do not run, or no longer.

    Args:
        slots: Where they have a slot.
        flights: Reads what the processes have written of them; ``None`` where there are none.
    """

    def __init__(self, slots: WorkerSlots, flights: FlightReader | None) -> None:
        self._slots = slots
        self._flights = flights
        self._since: dict[Delivery, float] = {}

    def add(self, requests: Iterable[Delivery]) -> None:
        """Note calls that have just been dropped."""
        for request in requests:
            self._since.setdefault(request, monotonic())

    def __contains__(self, request: Delivery) -> bool:
        return request in self._since

    def look(self) -> None:
        """Give back the slots of those that do not run."""
        for request, since in list(self._since.items()):
            age = monotonic() - since
            longest = BEGIN_SECONDS + request.limits.hard
            if age > BEGIN_SECONDS and (age > longest or not self._runs(request)):
                del self._since[request]
                self._slots.release(request)

    def _runs(self, request: Delivery) -> bool:
        flights = self._flights
        if flights is None:
            return False
        found = (flights.read(pid, request.id) for pid in flights.pids())
        return any(flight is not None and not flight.ended for flight in found)
