"""Changes limits over the fleet while it runs: for an operator.

What is set stands in Redis and is read with each call that asks, so it holds in all processes at
once, and survives their restarts, until it is taken back.

Runs in the process that asks. See also: :mod:`celery_budgets.sending.limits.overview`.
"""

from __future__ import annotations

import getpass
import os
import time
from typing import Any

from celery.utils.nodenames import gethostname

from celery_budgets.config.settings import settings_of
from celery_budgets.errors import ConfigurationError, nearest
from celery_budgets.model.limit import Demand, Limit
from celery_budgets.sending.limits.overview import LimitView, demands_in, overview
from celery_budgets.shared_state.limits_of_app import store_of

__all__ = ["places_of", "release_holder", "reset_limit", "set_limit"]

#: Asks for nothing; its release has whoever waits be offered what is free.
_NOBODY = "nobody:0"


def set_limit(
    app: Any, name: str, *, concurrency: int | None = None, rate: str | None = None
) -> None:
    """Have the limit *name* allow so much, in all processes, until :func:`reset_limit`.

    Args:
        app: The Celery app.
        name: Name of the limit.
        concurrency: Calls that may run at once; those that run above it finish.
        rate: Calls that may start, such as ``"300/m"``; the burst stays, and may start now.

    Raises:
        ConfigurationError: There is no such limit, or it has no such part; a value is wrong.
        redis.exceptions.RedisError: Redis does not answer.
    """
    limit = _limit(app, name)
    fields: dict[str, Any] = {"by": _operator(), "at": f"{time.time():.3f}"}
    for what, now, then in (
        ("concurrency", limit.concurrency, concurrency), ("rate", limit.rate, rate),
    ):  # fmt: skip
        if then is not None and now is None:
            raise ConfigurationError(
                f"limit {name!r} has no {what} to change; give it one in the configuration"
            )
    changed = Limit(
        name, limit.concurrency if concurrency is None else concurrency,
        rate=limit.rate if rate is None else rate,
    )  # fmt: skip
    if concurrency is not None:
        fields["concurrency"] = concurrency
    if rate is not None:
        assert changed.rate is not None
        fields |= {"rate": rate, "interval": f"{changed.rate.interval * 1e6:.3f}"}
    store = store_of(app)
    store.client.hset(store.name_of("set", name), mapping=fields)
    if rate is not None:
        _begin_anew(app, name)
    _offer(app, name)


def reset_limit(app: Any, name: str) -> bool:
    """Take back what was set for the limit *name*; return whether there was something.

    Raises:
        ConfigurationError: There is no such limit.
        redis.exceptions.RedisError: Redis does not answer.
    """
    _limit(app, name)
    store = store_of(app)
    rate = store.client.hget(store.name_of("set", name), "rate")
    found = bool(store.client.delete(store.name_of("set", name)))
    if rate is not None:
        _begin_anew(app, name)
    _offer(app, name)
    return found


def places_of(app: Any, holder: str) -> list[LimitView]:
    """Return the limits of which *holder* holds places.

    Raises:
        redis.exceptions.RedisError: Redis does not answer.
    """
    return [view for view in overview(app) if any(one.name == holder for one in view.holders)]


def release_holder(app: Any, holder: str) -> list[LimitView]:
    """Take all places away from *holder*, and return the limits of which it held some.

    If its process lives, it takes them again when it renews them, where there is still room; else
    its call is ended.

    Raises:
        redis.exceptions.RedisError: Redis does not answer.
    """
    store = store_of(app)
    held = places_of(app, holder)
    names = {(view.name, view.key): view for view in held}
    demands = []
    for demand in demands_in(app, store):
        view = names.get((demand.limit.name, demand.key))
        if view is not None:
            places = sum(one.places for one in view.holders if one.name == holder)
            demands.append(Demand(demand.limit, demand.key, places))
    if demands:
        store.release(holder, demands)
    return held


def _limit(app: Any, name: str) -> Limit:
    limits = settings_of(app).limits
    if name not in limits:
        raise ConfigurationError(f"there is no limit {name!r}; {nearest(name, limits)}")
    return limits[name]


def _begin_anew(app: Any, name: str) -> None:
    """Forget when calls are due by the former rate, which may be in hours."""
    store = store_of(app)
    for demand in demands_in(app, store, name):
        store.client.delete(store.name_of("rate", name, demand.key))


def _offer(app: Any, name: str) -> None:
    """Have those in line be offered what is free now; else they ask within seconds."""
    store = store_of(app)
    for demand in demands_in(app, store, name):
        store.release(_NOBODY, [demand])


def _operator() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{gethostname()}"
