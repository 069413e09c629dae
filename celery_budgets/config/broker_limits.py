"""What the broker allows: how long a message may stay unacknowledged before it comes again.

On Redis a worker renews what it has in hand, unless ``budgets_redis_transport`` says otherwise:
then there is no such limit.

See also: :mod:`celery_budgets.worker.startup.checks`, which refuses a lane above it.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from celery_budgets.config.settings import settings_of
from celery_budgets.model.priority import Broker

__all__ = ["broker_ceiling", "renews", "visibility_timeout"]

#: kombu.transport.redis.Channel.visibility_timeout, seconds.
KOMBU_VISIBILITY_TIMEOUT = 3600.0
#: Kept free below it, seconds: the sweep and the clocks of several hosts.
MARGIN = 30.0


def visibility_timeout(app: Any) -> float | None:
    """Return the seconds after which a Redis broker hands a message out again, else ``None``."""
    if Broker.at(app.conf.broker_read_url) is not Broker.REDIS:
        return None
    options = app.conf.broker_transport_options or {}
    return float(options.get("visibility_timeout", KOMBU_VISIBILITY_TIMEOUT))


def renews(app: Any) -> bool:
    """Return whether a worker of *app* renews what it has in hand, so that nothing is due."""
    return (
        Broker.at(app.conf.broker_read_url) is Broker.REDIS
        and settings_of(app).redis_transport == "budgets"
    )


def broker_ceiling(app: Any, factor: float) -> float | None:
    """Return the highest soft limit whose hard limit the broker allows, seconds.

    Args:
        app: The Celery app; its broker is looked at once, because each delivery asks.
        factor: The escalation factor of the budget.
    """
    settings = settings_of(app)
    read_from, visible = _visible.get(app, (None, None))
    if read_from is not settings:
        visible = None if renews(app) else visibility_timeout(app)
        _visible[app] = settings, visible
    return None if visible is None else max(1.0, (visible - MARGIN) / factor)


#: With the settings of that time: the configuration may be loaded anew.
_visible: WeakKeyDictionary[Any, tuple[Any, float | None]] = WeakKeyDictionary()
