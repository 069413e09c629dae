"""Makes the agent that holds the calls of one process to the limits of an app.

Used in the worker main process, and in each process that runs blocks with limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_budgets.config.settings import settings_of
from celery_budgets.model.per_process import PerProcess
from celery_budgets.shared_state.lease_store import client_of
from celery_budgets.shared_state.limit_agent import LimitAgent
from celery_budgets.shared_state.limit_store import LimitStore
from celery_budgets.shared_state.wish import Wish

__all__ = ["new_agent", "new_store", "store_of"]

#: Longest wait for Redis, seconds.
_SECONDS = 2.0


def new_agent(app: Any, on_lost: Callable[[Wish], object] = lambda wish: None) -> LimitAgent:
    """Return an agent of this process for *app*; it connects when it is first asked.

    Raises:
        ConfigurationError: The app has no Redis for limits.
    """
    return LimitAgent(new_store(app), new_store(app), on_lost)


def store_of(app: Any) -> LimitStore:
    """Return the store of this process for *app*, beside that of its agent.

    Raises:
        ConfigurationError: The app has no Redis for limits.
    """
    stores = _stores.of(app)
    if not stores:
        stores.append(new_store(app))
    return stores[0]


#: In a list: made at the first use, which may fail.
_stores: PerProcess[list[LimitStore]] = PerProcess(list)


def new_store(app: Any) -> LimitStore:
    """Return a store with a client of its own; for errors see :func:`store_of`."""
    client, prefix = client_of(app, _SECONDS, "a limit over the fleet")
    return LimitStore(client, length=settings_of(app).idempotency_lease, prefix=prefix)
