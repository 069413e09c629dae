"""The children of the call that runs in this pool process: their memory, and a note of them.

The watchdog looks at each tick, and what it sees stands in the flight record: so the worker can
end them when this process is gone and nobody is their parent any more.

Physical limit: what begins, leaves its parent and is a daemon between two looks is not seen.
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
    """Looks after the children of one call at a time, in the process that runs it."""

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
        """Return the memory of *call* with its children, bytes.

        Up to the level of the warning that is the sum of their RSS; above it their PSS, as pages
        that forked children share would be counted for each of them.

        Args:
            call: The call that runs here.
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


#: Returns the family of this process.
family = OncePerProcess(ChildTracker)
