"""Counts the calls of this worker against the wait that their lanes promise (``slo``).

Runs in the worker main process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from celery_budgets.model.headers import HEADER_DUE_AT, seconds_waited
from celery_budgets.model.lanes import Lane
from celery_budgets.telemetry.objectives import ObjectiveCounts

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["Objectives"]


class Objectives:
    """The objectives of the lanes of this worker that have one.

    Args:
        lanes: The lanes that it serves.
    """

    def __init__(self, lanes: Iterable[Lane]) -> None:
        #: By lane; without those that promise nothing.
        self.lanes = {
            lane.name: ObjectiveCounts(lane.slo) for lane in lanes if lane.slo is not None
        }
        # Calls start in pool threads.
        self._lock = threading.Lock()

    def started(self, request: Delivery) -> None:
        """Count a call that has started; not one whose message does not say since when it waits."""
        counts = self.lanes.get(request.lane.name)
        headers, started_at = request.request_dict, request.time_start
        if counts is None or started_at is None or headers.get(HEADER_DUE_AT) is None:
            return
        with self._lock:
            counts.count(seconds_waited(headers, started_at))

    def to_json(self, lane: str) -> dict[str, Any] | None:
        """Return what the worker answers of *lane*; ``None`` if it promises nothing."""
        counts = self.lanes.get(lane)
        if counts is None:
            return None
        with self._lock:
            return counts.to_json()
