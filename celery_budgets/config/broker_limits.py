"""The limit that the broker sets: how long a message may stay unacknowledged (Redis).

There is no such limit while workers renew the deliveries that they have not acknowledged, as they
do on Redis unless ``budgets_redis_transport`` turns it off.

See also: :mod:`celery_budgets.worker.startup.checks`, which refuses a lane above it.
"""

from __future__ import annotations

from typing import Any

from celery_budgets.config.by_settings import BySettings
from celery_budgets.config.settings import settings_of
from celery_budgets.model.priority import Broker

__all__ = ["broker_ceiling", "renews", "visibility_timeout"]

#: kombu.transport.redis.Channel.visibility_timeout, seconds.
KOMBU_VISIBILITY_TIMEOUT = 3600.0
#: Safety margin below it, seconds, for kombu's sweep and for clocks that differ between hosts.
MARGIN = 30.0


def visibility_timeout(app: Any) -> float | None:
    """Return the seconds after which a Redis broker redelivers a message; ``None`` elsewhere."""
    if Broker.at(app.conf.broker_read_url) is not Broker.REDIS:
        return None
    options = app.conf.broker_transport_options or {}
    return float(options.get("visibility_timeout", KOMBU_VISIBILITY_TIMEOUT))


def renews(app: Any) -> bool:
    """Return whether a worker of *app* renews its unacknowledged deliveries."""
    return (
        Broker.at(app.conf.broker_read_url) is Broker.REDIS
        and settings_of(app).redis_transport == "budgets"
    )


def broker_ceiling(app: Any, factor: float) -> float | None:
    """Return the highest soft limit whose hard limit the broker allows, seconds.

    Args:
        app: The Celery app; the visibility timeout is cached, because each delivery needs it.
        factor: The escalation factor of the budget.
    """
    visible = _visible.of(app)
    return None if visible is None else max(1.0, (visible - MARGIN) / factor)


_visible: BySettings[float | None] = BySettings(
    lambda app, _settings: None if renews(app) else visibility_timeout(app)
)
