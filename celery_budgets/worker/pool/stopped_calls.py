"""Hands back a call whose process a signal has ended that has stopped the worker too.

Pool processes leave such a signal to the worker (celery_budgets.execution.limits.stop_signals);
this is for those that did not: a program's own handler, or a call that had not begun.

Runs in the worker main process.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from celery.exceptions import WorkerLostError
from celery.worker import state

from celery_budgets.errors import words_of
from celery_budgets.execution.limits.stop_signals import STOP_SIGNALS
from celery_budgets.model.outcomes import Outcome

if TYPE_CHECKING:
    from celery_budgets.execution.flight.record import Flight
    from celery_budgets.worker.delivery import Delivery

__all__ = ["hands_back_stopped"]

logger = logging.getLogger(__name__)

#: As billiard.common.human_status words it: killed by the signal, or by billiard's handler of it.
_STATUS = re.compile(r"(?:signal|exitcode) (\d+)")


def hands_back_stopped(request: Delivery, exc: BaseException, flight: Flight | None) -> bool:
    """Requeue the message of *request* where its process was ended by the stop of this worker.

    Not the message of a task that acknowledges early: its call may run once only.

    Returns:
        Whether the call has ended so; its outcome is ``retried``.
    """
    if request.acknowledged or not request.task.acks_late or not _stops_warmly():
        return False
    if _signal_in(exc) not in STOP_SIGNALS:
        return False
    words = words_of(exc)
    logger.warning("budgets.call_stopped task=%s task_id=%s: %s", request.name, request.id, words)
    state.task_ready(request)
    request.roster.ended(request, Outcome.RETRIED, flight, words)
    request.reject(requeue=True)
    return True


def _stops_warmly() -> bool:
    # At a cold stop the broker gives all back, once the connection is closed. 0 is an exit code.
    stops, terminates = (
        value is not None and value is not False
        for value in (state.should_stop, state.should_terminate)
    )
    return stops and not terminates


def _signal_in(exc: BaseException) -> int:
    """Return the signal that has ended the process; 0 for none.

    billiard.common._shutdown_cleanup exits with the negative difference to 256.
    """
    if isinstance(exc, SystemExit):
        return exc.code % 256 if isinstance(exc.code, int) and exc.code < 0 else 0
    found = _STATUS.search(words_of(exc)) if isinstance(exc, WorkerLostError) else None
    return int(found.group(1)) if found else 0
