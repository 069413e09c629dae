"""Which Redis keeps the leases of an app, and how its clients are made.

The first of: ``budgets_idempotency_url``, the result backend, the broker.

Used in the process that sends a call with a key, and in the one that runs it.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from celery_budgets.errors import ConfigurationError
from celery_budgets.keeper import SERVER_SECONDS
from celery_budgets.leases import Leases
from celery_budgets.settings import settings_of

__all__ = ["leases_of"]

_SCHEMES = ("redis://", "rediss://")
_PREFIX = "celery-budgets:call:"


def leases_of(app: Any) -> Leases:
    """Return the leases of *app*; nothing is connected before the first is taken.

    Raises:
        ConfigurationError: Neither the setting nor backend nor broker names a Redis.
    """
    found = _leases.get(app)
    if found is None:
        settings = settings_of(app)
        length = settings.idempotency_lease
        client, prefix = _client(app, settings.idempotency_url, length * SERVER_SECONDS)
        retention = settings.idempotency_retention
        found = _leases[app] = Leases(
            client, length=length, retention=retention, prefix=prefix + _PREFIX
        )
    return found


_leases: WeakKeyDictionary[Any, Leases] = WeakKeyDictionary()


def _client(app: Any, url: str | None, timeout: float) -> tuple[Any, str]:
    """Return a client that gives up after *timeout* seconds, and the prefix of its keys."""
    from celery.backends.redis import RedisBackend

    if url is not None:
        return _from_url(url, timeout), ""
    backend = app.backend
    if isinstance(backend, RedisBackend):
        # As RedisBackend.client, which waits for 120 s; SentinelBackend makes its own pool.
        params = {**backend.connparams, **_impatient(timeout)}
        if "path" in params:
            params.pop("socket_connect_timeout")  # a Unix socket has none
        return backend._create_client(**params), _key_prefix(
            app.conf.result_backend_transport_options
        )
    broker = str(app.conf.broker_write_url or "").partition(";")[0]  # others are for fail-over
    if broker.startswith(_SCHEMES):
        tls = app.conf.broker_use_ssl
        more = dict(tls) if isinstance(tls, dict) and broker.startswith("rediss://") else {}
        return _from_url(broker, timeout, **more), _key_prefix(app.conf.broker_transport_options)
    raise ConfigurationError(
        "idempotency_key needs a Redis to keep it in, and neither the result backend nor the "
        'broker is one; set budgets_idempotency_url, such as "redis://localhost:6379/2"'
    )


def _from_url(url: str, timeout: float, **more: Any) -> Any:
    from redis import Redis

    return Redis.from_url(url, **_impatient(timeout), **more)


def _impatient(timeout: float) -> dict[str, Any]:
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    # The keeper of the leases tries again itself, and knows for how long.
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
    }


def _key_prefix(options: Any) -> str:
    return str((options or {}).get("global_keyprefix") or "")
