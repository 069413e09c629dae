"""The calls that run now on this worker, with what they have used of their limits.

Lives in the worker main process; told with ``inspect budgets``.
"""

from __future__ import annotations

from math import isfinite
from time import monotonic, time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery
    from celery_budgets.worker.runtime import WorkerRuntime

__all__ = ["MOST_TOLD", "running_calls"]

#: Most calls of one lane that are told, those that have run longest: an answer stays small.
MOST_TOLD = 20


def running_calls(runtime: WorkerRuntime) -> dict[str, list[dict[str, Any]]]:
    """Return the running calls of each lane as JSON values, the longest first."""
    found: dict[str, list[Delivery]] = {lane.name: [] for lane in runtime.served}
    for request in list(runtime.roster.in_hand.values()):
        found.setdefault(request.lane.name, []).append(request)
    for requests in found.values():
        requests.sort(key=lambda request: request.time_start or time())
    return {
        lane: [_told(runtime, request) for request in requests[:MOST_TOLD]]
        for lane, requests in found.items()
    }


def _told(runtime: WorkerRuntime, request: Delivery) -> dict[str, Any]:
    flight = runtime.running_flight_of(request)
    started = flight.started_at if flight is not None else request.time_start
    seconds = max(0.0, time() - (started or time()))
    limits = [request.limits.soft, request.limits.hard]
    if flight is not None:
        # A deadline may have come closer than the limits.
        deadlines = (flight.soft_deadline, flight.hard_deadline)
        limits = [max(0.0, seconds + at - monotonic()) for at in deadlines]
    # JSON has no infinity.
    soft, hard = (limit if limit is not None and isfinite(limit) else None for limit in limits)
    return {
        "task_id": request.id,
        "task": request.type,
        "seconds": seconds,
        "soft_time_limit": soft,
        "hard_time_limit": hard,
        "rss_peak": flight.rss_peak_bytes if flight is not None else None,
        "hard_rss": request.hard_rss,
    }
