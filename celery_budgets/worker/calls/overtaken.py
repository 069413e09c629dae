"""A call that was handed out again while it was in hand here: its second run is what counts.

That happens to a worker that stood still for longer than the visibility timeout, and where Redis
was away for that long. The message belongs to whoever has it now: nothing that is said of it here
reaches the broker, or it would be lost should that other worker die. A call that runs runs on, as
after a lost connection; one with an idempotency key has lost its lease and is stopped for that, if
another has taken the key. A call that has not started is dropped.

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
    """Tells of calls that were handed out again, and lets go of their messages.

    Args:
        lanes: The lanes of the app.
        roster: The calls of the worker; these are counted there.
        requests: Returns the requests that the worker has in hand.
    """

    def __init__(self, lanes: Lanes, roster: Roster, requests: Callable[[], Iterable[Any]]) -> None:
        self._lanes = lanes
        self._roster = roster
        self._requests = requests

    def tell(self, message: Any) -> None:
        """Note that *message* is another's by now."""
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
    """Have *request* say no more to the broker, and not start where it has not."""

    def settle(*_: Any) -> None:
        forget(message)

    request.overtaken = True
    request._on_ack = request._on_reject = settle
