"""``TaskCall``: the running call of a task, which can save how far it has come.

A state is saved for the next attempt of the same call: after a retry, a kill with ``max_kills``, or
when the message of a lost worker is delivered again. The worker deletes it once the call has its
outcome (:mod:`celery_budgets.worker.saved_states`).

Runs in the process that runs the call.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from celery_budgets.execution.call import Call
from celery_budgets.execution.flight.recorder import recorder
from celery_budgets.model.headers import HEADER_SAVED
from celery_budgets.units import KIB

__all__ = ["MOST_BYTES", "TaskCall"]

logger = logging.getLogger(__name__)

#: Longest state, bytes of JSON.
MOST_BYTES = 64 * KIB


class TaskCall(Call):
    """The running call of a task."""

    __slots__ = ("request", "task")

    def __init__(self, *args: Any, task: Any, request: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.task = task
        #: The request of the task; ``None`` where no worker runs it, and there is no next attempt.
        self.request = request

    def save(self, state: Any) -> bool:
        """Save *state* for the next attempt of this call, in place of an earlier one.

        Args:
            state: JSON values of at most 64 KiB; tuples come back as lists, keys as text.

        Returns:
            Whether it is kept: not where Redis does not answer (logged), where no worker runs the
            call, or once the call has ended.

        Raises:
            ValueError: It is no JSON, or too long.
            ConfigurationError: The app has no Redis to keep it in.
        """
        packed = self._packed(state)
        if self.request is None or not self.open or self.hard_sent:
            return False
        states = self._states()
        self._mark()
        try:
            states.save(self.task_id, packed)
        except _redis_error() as exc:
            self._tell("budgets.state_not_saved", exc)
            return False
        return True

    def saved(self) -> Any:
        """Return what an earlier attempt, or this one, has saved last; ``None``: nothing.

        Nothing too where Redis does not answer (logged): the call then begins from the start.

        Raises:
            ConfigurationError: The app has no Redis to keep it in.
        """
        if self.request is None:
            return None
        states = self._states()
        try:
            packed = states.saved(self.task_id)
        except _redis_error() as exc:
            self._tell("budgets.state_not_read", exc)
            return None
        if packed is None:
            return None
        self._mark()
        return json.loads(packed)

    def _packed(self, state: Any) -> bytes:
        try:
            packed = json.dumps(state, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as exc:
            raise ValueError(f"task {self.task.name!r}: save(): no JSON: {exc}") from exc
        if len(packed) > MOST_BYTES:
            raise ValueError(
                f"task {self.task.name!r}: save(): the state is {len(packed)} bytes of JSON, more "
                f"than {MOST_BYTES}; store the work itself elsewhere, and save where it is"
            )
        return packed

    def _states(self) -> Any:
        # Imported here, since it imports the Redis client and most calls save nothing.
        from celery_budgets.shared_state.saved_states import saved_states_of

        return saved_states_of(self.task.app)

    def _mark(self) -> None:
        """Have the worker delete the state at the end, and further attempts know of it."""
        if self.has_state:
            return
        self.has_state = True
        recorder().has_state(self)
        # A retry takes these headers along (celery.app.task.Task.signature_from_request).
        self.request.headers = {**(self.request.headers or {}), HEADER_SAVED: True}

    def _tell(self, event: str, exc: Exception) -> None:
        if self.first(event):
            logger.warning("%s task=%s task_id=%s: %s", event, self.task.name, self.task_id, exc)


def _redis_error() -> type[Exception]:
    from redis.exceptions import RedisError

    return RedisError
