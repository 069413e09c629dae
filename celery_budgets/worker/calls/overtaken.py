"""Handles calls whose message was redelivered to another worker before they ended here.

That happens if a worker is frozen, or Redis is down, for longer than the visibility timeout. The
message belongs to the worker that has it now: this one must not acknowledge or reject it, or the
message would be lost if that other worker died. A running call continues, as after a lost
connection; one with an idempotency key has lost its lease, and is stopped if another call has
taken the key. A call that has not started is dropped.

Runs in a thread of the worker main process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from celery_budgets.model.lanes import Lanes
from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.transport.renewing.in_hand import forget

__all__ = ["Overtaken"]

logger = logging.getLogger(__name__)


class Overtaken:
    """Reports calls that were redelivered elsewhere, and detaches them from their messages.

    Args:
        lanes: The lanes of the app.
        roster: The calls of the worker, which counts redelivered ones.
        requests: Returns the unsettled requests of the worker.
    """

    def __init__(self, lanes: Lanes, roster: Roster, requests: Callable[[], Iterable[Any]]) -> None:
        self._lanes = lanes
        self._roster = roster
        self._requests = requests

    def tell(self, message: Any) -> None:
        """Log and count that *message* belongs to another worker now."""
        headers = message.headers or {}
        lane = self._lanes.of_queue((message.delivery_info or {}).get("routing_key"))
        name = lane.name if lane is not None else ""
        request = next((each for each in self._requests() if each.message is message), None)
        runs = request is not None and request.time_start is not None
        logger.warning(
            "budgets.redelivered task=%s lane=%s id=%s: the broker has handed it out again, and "
            "that run counts; the one here %s", headers.get("task"), name or None,
            headers.get("id"), "runs on" if runs else "is dropped",
        )  # fmt: skip
        self._roster.redelivered[name] += 1
        self._roster.tally.recent.count(name, "redelivered")
        if request is not None:
            _let_go(request, message)


def _let_go(request: Any, message: Any) -> None:
    """Detach *request* from the broker, and prevent its start if it has not started."""

    def settle(*_: Any) -> None:
        forget(message)

    request.overtaken = True
    request._on_ack = request._on_reject = settle
