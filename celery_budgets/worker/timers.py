"""The timers of calls, without those that were cancelled.

Celery arms a timer for each call with a limit and cancels it when the call has ended, but
kombu.asynchronous.timer.Timer keeps a cancelled timer until it would have been due: with a limit
of five minutes a worker would carry one for each call of the last five minutes.
"""

from __future__ import annotations

from heapq import heapify
from typing import Any
from weakref import WeakValueDictionary

__all__ = ["CallTimers"]

#: Cancelled timers that may gather before they are looked for.
SPARE = 1_000


class CallTimers(WeakValueDictionary[int, Any]):
    """Stands in for ``AsynPool._tref_for_id``: the timers by job, popped to be cancelled.

    Args:
        hub: The event loop that they are armed in.
    """

    def __init__(self, hub: Any) -> None:
        super().__init__()
        self._hub = hub
        self._most = SPARE

    def pop(self, *args: Any) -> Any:
        """Remove and return a timer; now and then drop the cancelled ones."""
        found = super().pop(*args)
        queue = self._hub.timer._queue
        if len(queue) > self._most:
            # In place, as kombu iterates over this very list.
            queue[:] = [waiting for waiting in queue if not waiting.entry.canceled]
            heapify(queue)
            self._most = 2 * len(queue) + SPARE
        return found
