"""Warns once of calls that wait for a result of their own full lane.

Such a call keeps the slot that the awaited call may need: if they take all slots of a lane, it is
deadlocked until a time limit ends one.

Runs in the worker's event loop. See also: :mod:`celery_budgets.sending.results`, which records
that a call waits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from celery_budgets.execution.flight.reader import FlightReader
from celery_budgets.execution.flight.recorder import recorder
from celery_budgets.worker.lanes.lane_slots import WorkerSlots

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["SelfWaiting"]

logger = logging.getLogger(__name__)


class SelfWaiting:
    """Detects such calls in one worker.

    Args:
        slots: The slots of the worker.
        flights: Reads the flight records; ``None`` if the pool has no processes.
    """

    def __init__(self, slots: WorkerSlots, flights: FlightReader | None) -> None:
        self._slots = slots
        self._flights = flights
        self._told: set[tuple[str, str]] = set()

    def look(self) -> None:
        """Warn of new ones, by lane and task."""
        for lane, taken in self._slots.full():
            for task in sorted(set(self._waiting(taken))):
                if (lane, task) not in self._told:
                    self._told.add((lane, task))
                    self._warn(lane, task, len(taken))

    def _waiting(self, taken: list[Delivery]) -> Iterator[str]:
        for request in taken:
            if (request.lane.name, request.type) in self._told:
                continue
            if self._waits(request):
                yield request.type

    def _waits(self, request: Delivery) -> bool:
        flights = self._flights
        if flights is None:
            return request.id in recorder().waiting
        flight = flights.read(request.worker_pid, request.id)
        return flight is not None and flight.waits and not flight.ended

    def _warn(self, lane: str, task: str, taken: int) -> None:
        logger.warning(
            "budgets.lane_waits_for_itself lane=%s task=%s taken=%s: a call waits for a result of "
            "its own lane, which is full; give what it waits for a lane of its own, use a chain or "
            "chord instead of get(), or raise the lane's concurrency", lane, task, taken,
        )  # fmt: skip
