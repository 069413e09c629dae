"""Waits for results of calls: pushed by the backend if it can, else polled.

A backend that pushes (Redis, RPC) delivers each result while its events are drained; it is also
polled from time to time, in case a push was lost. Any other backend is polled, more slowly while
nothing arrives.

Only pending results are kept. See also: :mod:`celery_budgets.batch.batch`.

Runs in the process that sends.
"""

from __future__ import annotations

from collections import deque
from time import monotonic, sleep
from typing import Any

from vine import promise

__all__ = ["Arrivals"]

#: Longest wait for a push, and the quiet time after which results are polled, seconds.
PUSH_SECONDS = 1.0
QUIET_SECONDS = 5.0
#: Shortest and longest interval for polling a backend that cannot push, seconds.
LOOK_SECONDS = (0.02, 0.5)


class Arrivals:
    """Collects the results of pending calls.

    Args:
        backend: The result backend of the calls.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._pushes = bool(getattr(backend, "is_async", False))
        #: By identity: calls with one idempotency key share a task id.
        self._waited_for: dict[int, Any] = {}
        self._arrived: deque[Any] = deque()
        self._look_after = LOOK_SECONDS[0]
        self._looked_at = monotonic()

    def expect(self, result: Any, *, may_be_there: bool = False) -> None:
        """Wait for *result*, an ``AsyncResult`` whose call has just been sent.

        Args:
            result: The result.
            may_be_there: Whether it may have been stored before the call was sent, by a twin.
        """
        self._waited_for[id(result)] = result
        if self._pushes:
            # Celery has subscribed before it sent the call (Backend.on_task_call).
            result.then(self._on_ready)
        if may_be_there:
            result.ready()

    def forget(self, result: Any) -> None:
        """Stop waiting for *result*."""
        if self._waited_for.pop(id(result), None) is not None and self._pushes:
            self._backend.remove_pending_result(result)

    def close(self) -> None:
        """Stop waiting for all results."""
        for result in list(self._waited_for.values()):
            self.forget(result)

    def wait(self, timeout: float) -> list[Any]:
        """Return the results that have arrived, after at most about *timeout* seconds."""
        if not self._arrived:
            self._drain(timeout) if self._pushes else self._look_in_turn(timeout)
        arrived = list(self._arrived)
        self._arrived.clear()
        if arrived:
            self._looked_at = monotonic()
        return arrived

    def _on_ready(self, result: Any) -> None:
        if self._waited_for.pop(id(result), None) is not None:
            self._arrived.append(result)

    def _drain(self, timeout: float) -> None:
        consumer = self._backend.result_consumer
        try:
            # By the drainer, which on gevent is a greenlet that drains for all waiters.
            consumer.drainer.wait_for(
                promise(), consumer.drain_events, timeout=min(timeout, PUSH_SECONDS)
            )
        except OSError:
            sleep(min(timeout, LOOK_SECONDS[0]))  # nothing arrived, or it reconnects
        if not self._arrived and monotonic() - self._looked_at > QUIET_SECONDS:
            self._look()

    def _look_in_turn(self, timeout: float) -> None:
        self._look()
        if self._arrived:
            self._look_after = LOOK_SECONDS[0]
            return
        sleep(min(timeout, self._look_after))
        self._look_after = min(2 * self._look_after, LOOK_SECONDS[1])

    def _look(self) -> None:
        """Poll all pending results."""
        self._looked_at = monotonic()
        for result in list(self._waited_for.values()):
            if result.ready():
                self._on_ready(result)
