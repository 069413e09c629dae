"""Recycles a pool process that has grown too large, between two calls.

It exits where billiard lets a process exit: after the result was sent and before the next job is
taken. Celery's own ``worker_max_memory_per_child`` acts there too, but it uses the highest RSS
ever, so that one spike replaces a process that has freed the memory long ago.
"""

from __future__ import annotations

import ctypes
import gc
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from billiard import pool as billiard_pool

from celery_budgets.execution.limits.watchdog import watchdog
from celery_budgets.execution.memory import rss as memory
from celery_budgets.units import KIB, format_size

if TYPE_CHECKING:
    from celery_budgets.execution.call import Call
    from celery_budgets.model.budget import Budget

__all__ = ["Recycling", "install", "largest_size"]

logger = logging.getLogger(__name__)


def largest_size(budget: Budget, started: int) -> int:
    """Return the RSS above which a process is recycled, bytes.

    ``max_rss``, but at least the size of the process at its start plus the difference between the
    limit and the warning level. Otherwise a process forked from a large worker would be replaced
    after each call, although its replacement is as large.

    Args:
        budget: The budget of the call that has ended.
        started: RSS of the process before its first call, bytes.
    """
    return max(budget.max_rss, started + budget.max_rss - budget.rss_warning)


class Recycling:
    """Replaces the function by which billiard measures this process, in KiB.

    Mirrors billiard.compat.mem_rss (4.3), which billiard.pool.Worker.workloop calls after each
    call if ``max_memory_per_child`` is set; the process exits when the result is above that.
    Differs: it uses the current RSS, and returns 1 KiB for a process that should stay.

    Args:
        theirs: The program's own ``worker_max_memory_per_child``, KiB of peak RSS; it still
            applies.
        peak: billiard's own function, in KiB.
    """

    def __init__(self, theirs: int | None, peak: Callable[[], int]) -> None:
        self._theirs = theirs or 0
        self._peak = peak
        self._started = memory.rss()
        self._asked_after: Call | None = None
        #: The budget of the last call, and the size above which it recycles, bytes.
        self._budget: Budget | None = None
        self._limit = 0

    def __call__(self) -> int:
        """Return a size above ``max_memory_per_child`` for a process that should exit, KiB."""
        if self._theirs and (peak := self._peak()) > self._theirs:
            return peak
        call = watchdog().released
        if call is None:
            return 1
        if call.budget is not self._budget:
            self._budget, self._limit = call.budget, largest_size(call.budget, self._started)
        limit = self._limit
        # A call under a budget has just measured RSS, or just before it if it was very short; a
        # plain task has not.
        rss = call.rss_after if call is not self._asked_after else memory.rss()
        self._asked_after = call
        if rss > limit:
            _give_back()
            rss = memory.rss()
        if rss <= limit:
            return 1
        logger.warning(
            "budgets.process_leaves lane=%s rss=%s limit=%s started=%s: it takes no further call",
            call.lane, format_size(rss), format_size(limit), format_size(self._started),
        )  # fmt: skip
        return max(rss // KIB, self._theirs) + 1


def _give_back() -> None:
    """Return unused memory of the last call to the system."""
    gc.collect()  # an exception, its traceback and the frames of the body are a cycle
    # glibc keeps freed blocks below the highest one in use.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def install(app: Any) -> None:
    """Make billiard use :class:`Recycling`; in a pool process, before its first call."""
    if not isinstance(billiard_pool.mem_rss, Recycling):
        theirs = app.conf.worker_max_memory_per_child
        billiard_pool.mem_rss = Recycling(theirs, billiard_pool.mem_rss)
