"""Tracks calls that Celery drops at a reconnect but that may still run in a pool process.

When the connection to the broker is lost, Celery drops every call that no process has accepted
(celery.concurrency.asynpool.AsynPool.flush), since its message is redelivered. A call that was
being written to a process just then begins nevertheless. If that process does not report it in
time (:mod:`celery_budgets.worker.pool.started_calls`), Celery ignores its end. It keeps its slot
until the flight record of its process shows that it has ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING

from celery_budgets.execution.flight.reader import FlightReader
from celery_budgets.worker.lanes.lane_slots import WorkerSlots

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["DroppedCalls"]

#: How long a process may take to begin a call that was being written to it, seconds.
BEGIN_SECONDS = 2.0


class DroppedCalls:
    """Releases the slots of dropped calls that do not run, or have ended.

    Args:
        slots: The slots of the worker.
        flights: Reads the flight records; ``None`` if the pool has no processes.
    """

    def __init__(self, slots: WorkerSlots, flights: FlightReader | None) -> None:
        self._slots = slots
        self._flights = flights
        self._since: dict[Delivery, float] = {}

    def add(self, requests: Iterable[Delivery]) -> None:
        """Add calls that have just been dropped."""
        for request in requests:
            self._since.setdefault(request, monotonic())

    def __contains__(self, request: Delivery) -> bool:
        return request in self._since

    def look(self) -> None:
        """Release the slots of those that do not run."""
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
