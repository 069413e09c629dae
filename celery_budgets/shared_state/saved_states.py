"""What calls have saved for their next attempt, in the Redis of the leases.

By task id: all attempts of a call have the same. Used in the process that runs a call, and in the
worker main process, which deletes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_budgets.config.by_settings import BySettings
from celery_budgets.config.settings import settings_of
from celery_budgets.shared_state.lease_store import client_of

__all__ = ["SavedStates", "saved_states_of"]

_PREFIX = "celery-budgets:saved:"
#: Longest wait for Redis, seconds.
_SECONDS = 2.0


class SavedStates:
    """The saved states of the calls of an app.

    Args:
        app: The Celery app.

    Raises:
        ConfigurationError: It has no Redis for them.
    """

    def __init__(self, app: Any) -> None:
        self._client, prefix = client_of(app, _SECONDS, "budget.save()")
        self._prefix = prefix + _PREFIX
        self._keep_ms = max(1, round(settings_of(app).progress_retention * 1000))

    def save(self, task_id: str, state: bytes) -> None:
        """Keep *state* in place of what was saved before.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        self._client.set(self._prefix + task_id, state, px=self._keep_ms)

    def saved(self, task_id: str) -> bytes | None:
        """Return what was saved last; ``None`` if there is nothing.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        state: bytes | None = self._client.get(self._prefix + task_id)
        return state

    def delete(self, task_ids: Sequence[str]) -> None:
        """Delete what these calls have saved.

        Raises:
            redis.exceptions.RedisError: The server does not answer; it expires by itself.
        """
        # One command for each: a cluster keeps the keys in different places.
        with self._client.pipeline(transaction=False) as pipe:
            for task_id in task_ids:
                pipe.delete(self._prefix + task_id)
            pipe.execute()


_states: BySettings[SavedStates] = BySettings(lambda app, _settings: SavedStates(app))


def saved_states_of(app: Any) -> SavedStates:
    """Return the saved states of *app*; the client connects when it is first used.

    Raises:
        ConfigurationError: The app has no Redis for them.
    """
    return _states.of(app)
