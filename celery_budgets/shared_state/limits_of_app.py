"""Makes the agent that holds the calls of one process to the limits of an app.

Used in the worker main process, and in each process that runs blocks with limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_budgets.config.settings import settings_of
from celery_budgets.shared_state.lease_store import client_of
from celery_budgets.shared_state.limit_agent import LimitAgent, Wish
from celery_budgets.shared_state.limit_store import LimitStore

__all__ = ["new_agent"]

#: Longest wait for Redis, seconds.
_SECONDS = 2.0


def new_agent(app: Any, on_lost: Callable[[Wish], object] = lambda wish: None) -> LimitAgent:
    """Return an agent of this process for *app*; it connects when it is first asked.

    Raises:
        ConfigurationError: The app has no Redis for limits.
    """
    return LimitAgent(_store(app), _store(app), on_lost)


def _store(app: Any) -> LimitStore:
    client, prefix = client_of(app, _SECONDS, "a limit over the fleet")
    return LimitStore(client, length=settings_of(app).idempotency_lease, prefix=prefix)
