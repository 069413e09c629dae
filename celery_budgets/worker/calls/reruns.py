"""Runs killed calls again, at most ``max_kills`` times.

The higher of two counts is used: a header counts the kills of one message over its re-runs, and a
table in this worker counts those of a signature (name and arguments), so that sending the same
fatal call again does not start from zero.

Physical limit: a kill of the worker main process itself is not counted. The broker then redelivers
its messages; a RabbitMQ quorum queue counts that itself (``x-delivery-limit``).
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from celery_budgets.model.headers import HEADER_KILLS
from celery_budgets.model.outcomes import Outcome

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["KillReruns"]

logger = logging.getLogger(__name__)

#: Most signatures remembered, and seconds since their last kill for which they are.
REMEMBERED = 1_000
REMEMBERED_SECONDS = 3600.0
#: Outcomes counted for the signature: those that may affect other calls.
_COUNTED = frozenset({Outcome.MEMORY_LIMIT, Outcome.WORKER_LOST})


class KillReruns:
    """Counts kills by signature, and sends a killed call again while it may run again."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._kills: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def run_again(self, request: Delivery, exc: Exception, outcome: Outcome) -> bool:
        """Send a killed call again if its task allows that; return whether it did.

        Mirrors celery.worker.request.Request._retry_worker_lost (5.7). Differs: it has its own
        counter, since a kill is no retry.
        """
        kills = _kills_before(request.request_dict.get(HEADER_KILLS)) + 1
        task, most = request.task, request.task.max_kills
        if not most or not task.acks_late:
            return False
        counted = self._count(request) if outcome in _COUNTED else 0
        if max(kills, counted) > most:
            logger.error(
                "budgets.kill_is_final task=%s task_id=%s kills=%s max_kills=%s: %s",
                request.name, request.id, max(kills, counted), most, exc,
            )  # fmt: skip
            return False
        context = request._context
        headers = {**(context.headers or {}), HEADER_KILLS: kills}
        try:
            task.signature_from_request(
                context, headers=headers, countdown=None, retries=context.retries
            ).apply_async()
        except BaseException:
            logger.exception("budgets.rerun_failed task_id=%s: the kill is final", request.id)
            return False
        logger.warning(
            "budgets.call_runs_again task=%s task_id=%s kills=%s max_kills=%s: %s",
            request.name, request.id, kills, most, exc,
        )  # fmt: skip
        return True

    def _count(self, request: Delivery) -> int:
        """Count a kill of the signature of *request*; return the total."""
        now, key = self._clock(), _signature(request)
        kills, last = self._kills.pop(key, (0, now))
        kills = kills + 1 if now - last < REMEMBERED_SECONDS else 1
        self._kills[key] = kills, now
        if len(self._kills) > REMEMBERED:
            self._kills.popitem(last=False)
        return kills


def _signature(request: Delivery) -> bytes:
    kwargs = sorted((request.kwargs or {}).items())
    try:
        words = repr((request.type, tuple(request.args or ()), kwargs))
    except BaseException:
        # If the repr of the arguments raises: that which the sender put into the message.
        words = repr((request.type, request._argsrepr, request._kwargsrepr))
    return hashlib.blake2b(words.encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _kills_before(header: object) -> int:
    """Return the kills in a message's header; 0 if it is invalid."""
    return header if isinstance(header, int) and header > 0 else 0
