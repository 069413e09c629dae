"""Deletes what a call has saved for its next attempt, once there will be none.

A thread does it, so that a Redis that does not answer delays no call: then the state expires by
itself. Nothing is asked about calls that cannot have saved anything.

Lives in the worker main process.
"""

from __future__ import annotations

import logging
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from celery import signals

from celery_budgets.errors import ConfigurationError
from celery_budgets.execution.flight.record import has_state
from celery_budgets.model.headers import HEADER_KILLS, HEADER_SAVED
from celery_budgets.model.outcomes import Outcome
from celery_budgets.worker.calls.twins import shares_result_of_twin

if TYPE_CHECKING:
    from celery_budgets.worker.calls.roster import CallEnd

__all__ = ["SavedStateDeletion"]

logger = logging.getLogger(__name__)

#: Most states that are deleted with one command.
MOST = 100
#: How long a stop of the worker waits for the last ones, seconds.
LONGEST_WAIT = 5.0


class SavedStateDeletion:
    """Deletes the states of calls that have ended for good.

    Args:
        worker: The Celery worker.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._ended: SimpleQueue[str | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._useless = False

    def look(self, end: CallEnd) -> None:
        """Have the state of a call deleted that has ended, if it may have one."""
        if self._useless or _comes_again(end) or not _may_have_state(end):
            return
        self._ended.put(end.request.id)
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="celery-budgets-saved-states", daemon=True
            )
            self._thread.start()
            signals.worker_shutdown.connect(self._finish, sender=self._worker)

    def _finish(self, **_: Any) -> None:
        """Wait for the states of the last calls."""
        self._ended.put(None)
        if self._thread is not None:
            self._thread.join(LONGEST_WAIT)

    def _run(self) -> None:
        more = True
        while more:
            ids = [self._ended.get()]
            try:
                while len(ids) < MOST:
                    ids.append(self._ended.get_nowait())
            except Empty:
                pass
            more = None not in ids
            self._delete([task_id for task_id in ids if task_id is not None])

    def _delete(self, task_ids: list[str]) -> None:
        # Imported here, since it imports the Redis client.
        from celery_budgets.shared_state.saved_states import saved_states_of

        try:
            if task_ids:
                saved_states_of(self._worker.app).delete(task_ids)
        except ConfigurationError:
            self._useless = True  # there is no Redis, and so no state
        except Exception as exc:
            logger.warning(
                "budgets.state_not_deleted task_id=%s and %s more: %s: they expire by themselves",
                task_ids[0], len(task_ids) - 1, exc,
            )  # fmt: skip


def _comes_again(end: CallEnd) -> bool:
    """Return whether there is another attempt, which may run already."""
    again = end.again or end.outcome is Outcome.RETRIED or end.request.sent_again
    return again or end.request.overtaken


def _may_have_state(end: CallEnd) -> bool:
    """Return whether this attempt has saved or found one, or one before it may have saved one."""
    request = end.request
    if has_state(end.record, request.id):
        return True
    headers = request.request_dict
    later = HEADER_SAVED in headers or HEADER_KILLS in headers
    later = later or bool(request.delivery_info.get("redelivered"))
    # The state may be that of a twin that runs.
    return later and not shares_result_of_twin(request)
