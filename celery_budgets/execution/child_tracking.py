"""Tracks the child processes of the running call: their memory, and their pids.

The watchdog lists them at each tick and writes them to the flight record, so that the worker can
end them after this process has died and they have lost their parent.

Physical limit: a child that daemonizes between two ticks is not seen.
"""

from __future__ import annotations

import os
from time import monotonic

from celery_budgets.execution.call import Call
from celery_budgets.execution.children import Child, ask_to_end, began_since, found_below, lives
from celery_budgets.execution.flight.recorder import recorder
from celery_budgets.execution.memory.pss import ProcessTree
from celery_budgets.model.per_process import OncePerProcess

__all__ = ["ChildTracker", "family"]


class ChildTracker:
    """Tracks the children of one call at a time, in the process that runs it."""

    def __init__(self) -> None:
        self._call: Call | None = None
        self._known: set[Child] = set()
        self._since = 0
        self._tree = self._new_tree()

    def _new_tree(self) -> ProcessTree:
        return ProcessTree(
            os.getpid(), members=lambda: [os.getpid(), *(c.pid for c in self._known)]
        )

    def size(self, call: Call, rss: int) -> int:
        """Return the memory of *call* including its children, bytes.

        Up to the warning level that is the sum of their RSS; above it their PSS, because RSS counts
        pages that forked children share once for each of them.

        Args:
            call: The running call.
            rss: RSS of this process, bytes.
        """
        if call is not self._call:
            self._call, self._known, self._tree = call, set(), self._new_tree()
            self._since = began_since(monotonic() - call.started_mono)
        found = found_below(os.getpid(), self._since)
        known = found | {child for child in self._known - found if lives(child)}
        if known != self._known:
            self._known = known
            recorder().children(call, known)
        if not known:
            return rss
        budget = call.budget
        raises = budget.memory == "raise" and not call.memory_sent
        certain = budget.max_rss if raises else budget.hard_rss
        return max(rss, self._tree.size(budget.rss_warning, certain))

    def ask_to_end(self, call: Call) -> None:
        """Send SIGTERM to the children of *call*, whose process ends itself now."""
        if call is self._call:
            ask_to_end(self._known)


#: Returns the tracker of this process.
family = OncePerProcess(ChildTracker)
