"""Tells of calls that run far longer than their task usually does, while their limit is far away.

Lives in the worker main process, which looks once a second; a call that is not slow costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from time import monotonic, time
from typing import TYPE_CHECKING
from weakref import WeakSet

from celery_budgets.units import format_duration
from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.stacks.black_box import BlackBox

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["SlowCalls"]

logger = logging.getLogger(__name__)

#: A call is slow above this many times the p99 of its task, and above these seconds.
TIMES = 10
LEAST_SECONDS = 10.0
#: Calls of a task that must have ended before, for its p99 to mean something.
LEAST_CALLS = 100
#: How long percentiles are cached, seconds; and most calls that are told of in one look.
_P99_SECONDS = 5.0
_MOST_TOLD = 5


class SlowCalls:
    """Tells once of each slow call, with where it is.

    Args:
        roster: The running calls, and the statistics of those that have ended.
        black_box: Takes stacks.
        clock: Returns seconds since the epoch.
    """

    def __init__(
        self, roster: Roster, black_box: BlackBox, clock: Callable[[], float] = time
    ) -> None:
        self._roster = roster
        self._black_box = black_box
        self._clock = clock
        self._told: WeakSet[Delivery] = WeakSet()
        self._read_at = -inf
        self._p99: dict[str, float] = {}

    def look(self) -> None:
        """Tell of the calls that have become slow."""
        now = self._clock()
        old = [
            (request, now - request.time_start)
            for request in list(self._roster.in_hand.values())
            if request.time_start and request not in self._told
        ]
        old = [(request, seconds) for request, seconds in old if seconds > LEAST_SECONDS]
        if not old:
            return
        self._read()
        slow = [each for each in old if each[1] > TIMES * self._p99.get(each[0].type, inf)]
        for request, seconds in slow[:_MOST_TOLD]:
            self._told.add(request)
            self._tell(request, seconds)

    def _read(self) -> None:
        if monotonic() - self._read_at < _P99_SECONDS:
            return
        self._read_at, self._p99 = monotonic(), {}
        for task, calls in self._roster.tally.statistics().tasks.items():
            p99 = calls.duration.quantile(0.99)
            if calls.duration.count >= LEAST_CALLS and p99 is not None:
                self._p99[task] = p99

    def _tell(self, request: Delivery, seconds: float) -> None:
        stack, p99 = self._black_box.now(request), self._p99[request.type]
        facts = {
            "event": "budgets.call_slow", "task": request.type, "task_id": request.id,
            "lane": request.lane.name, "worker": request.hostname, "seconds": seconds, "p99": p99,
            "stack": stack.to_json() if stack is not None else None,
        }  # fmt: skip
        logger.warning(
            "budgets.call_slow task=%s task_id=%s lane=%s seconds=%.1f p99=%s in=%s%s",
            request.type, request.id, request.lane.name, seconds, format_duration(p99),
            stack.label if stack is not None else "unknown",
            "".join(f"\n{line}" for line in stack.lines()) if stack is not None else "",
            extra={"budgets": facts},
        )  # fmt: skip
