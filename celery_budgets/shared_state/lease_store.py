"""Chooses the Redis that stores the leases of an app, and creates its clients.

It is the first that is configured: ``budgets_idempotency_url``, the result backend, the broker.

Used in the process that sends a call with a key, and in the one that runs it.
"""

from __future__ import annotations

from typing import Any

from celery_budgets.config.by_settings import BySettings
from celery_budgets.config.settings import Settings, settings_of
from celery_budgets.errors import ConfigurationError
from celery_budgets.model.priority import addresses
from celery_budgets.shared_state.leases import Leases
from celery_budgets.shared_state.renewal import SERVER_SECONDS

__all__ = ["client_of", "leases_of"]

_SCHEMES = ("redis://", "rediss://", "unix://")
_PREFIX = "celery-budgets:call:"


def leases_of(app: Any) -> Leases:
    """Return the leases of *app*; the client connects when the first lease is taken.

    Raises:
        ConfigurationError: Neither the setting nor the backend nor the broker is a Redis.
    """
    return _leases.of(app)


def _leases_by(app: Any, settings: Settings) -> Leases:
    length, retention = settings.idempotency_lease, settings.idempotency_retention
    client, prefix = client_of(app, length * SERVER_SECONDS, "idempotency_key")
    return Leases(client, length=length, retention=retention, prefix=prefix + _PREFIX)


_leases: BySettings[Leases] = BySettings(_leases_by)


def client_of(app: Any, timeout: float, needed_by: str) -> tuple[Any, str]:
    """Return a new client of the Redis of the leases of *app*, and the prefix of its keys.

    Args:
        app: The Celery app.
        timeout: Longest wait for a reply, seconds.
        needed_by: What needs it, for an error.

    Raises:
        ConfigurationError: As :func:`leases_of`.
    """
    from celery.backends.redis import RedisBackend

    url = settings_of(app).idempotency_url
    if url is not None:
        return _from_url(url, timeout), ""
    backend = app.backend
    if isinstance(backend, RedisBackend):
        # As RedisBackend.client, which waits for 120 s; SentinelBackend creates its own pool.
        params = {**backend.connparams, **_impatient(timeout)}
        if "path" in params:
            params.pop("socket_connect_timeout")  # a Unix socket has none
        return backend._create_client(**params), _key_prefix(
            app.conf.result_backend_transport_options
        )
    # The first one: the others are for fail-over, and do not have the leases of the first.
    broker = next(iter(addresses(app.conf.broker_write_url)), "")
    if broker.startswith("sentinel://"):
        return _by_sentinel(app, timeout, needed_by), _key_prefix(app.conf.broker_transport_options)
    broker = broker.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=")
    if broker.startswith(_SCHEMES):
        tls = app.conf.broker_use_ssl
        more = dict(tls) if isinstance(tls, dict) and broker.startswith("rediss://") else {}
        return _from_url(broker, timeout, **more), _key_prefix(app.conf.broker_transport_options)
    raise ConfigurationError(
        f"{needed_by} needs a Redis to keep it in, and neither the result backend nor the "
        'broker is one; set budgets_idempotency_url, such as "redis://localhost:6379/2"'
    )


def _from_url(url: str, timeout: float, **more: Any) -> Any:
    from redis import Redis

    return Redis.from_url(url, **_impatient(timeout), **more)


def _by_sentinel(app: Any, timeout: float, needed_by: str) -> Any:
    """Return a client of the master that the broker's sentinels name.

    Mirrors kombu.transport.redis.SentinelChannel._sentinel_managed_pool. Differs: connects lazily.
    """
    from kombu.utils.url import parse_url
    from redis import Redis
    from redis.sentinel import Sentinel

    options = app.conf.broker_transport_options or {}
    name = options.get("master_name")
    if name is None:
        raise ConfigurationError(
            f"{needed_by}: the broker's sentinels are not told which Redis; set "
            "broker_transport_options['master_name']"
        )
    parsed = [parse_url(each) for each in addresses(app.conf.broker_write_url)]
    nodes = [(each["hostname"], each["port"] or 26379) for each in parsed]
    first = parsed[0]
    account = {"username": first.get("userid"), "password": first.get("password")}
    sentinels = Sentinel(
        nodes, min_other_sentinels=options.get("min_other_sentinels", 0),
        sentinel_kwargs=options.get("sentinel_kwargs") or _impatient(timeout),
    )  # fmt: skip
    database = str(first.get("virtual_host") or "0").strip("/") or "0"
    return sentinels.master_for(
        name, Redis, db=int(database), **{k: v for k, v in account.items() if v},
        **_impatient(timeout),
    )  # fmt: skip


def _impatient(timeout: float) -> dict[str, Any]:
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    # LeaseRenewal retries by itself, and knows for how long it may.
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
    }


def _key_prefix(options: Any) -> str:
    return str((options or {}).get("global_keyprefix") or "")
