"""A broker may have several addresses, in each form that kombu takes."""

from __future__ import annotations

import pytest
from celery import Celery

from celery_budgets import Budgets, ConfigurationError
from celery_budgets.config.broker_limits import broker_ceiling
from celery_budgets.config.settings import reread
from celery_budgets.model.priority import Broker
from celery_budgets.shared_state.lease_store import leases_of
from celery_budgets.telemetry.spans import _messaging_system

NOWHERE = "redis://127.0.0.1:1/0"


def app_at(url, **conf):
    app = Celery("addresses", set_as_current=False)
    app.conf.update(broker_url=url, **conf)
    Budgets(app)
    return app


@pytest.mark.parametrize(
    ("url", "system", "broker"),
    [
        (NOWHERE, "redis", Broker.REDIS),
        ([NOWHERE, "redis://127.0.0.1:2/0"], "redis", Broker.REDIS),
        ((NOWHERE,), "redis", Broker.REDIS),
        (f"{NOWHERE};redis://127.0.0.1:2/0", "redis", Broker.REDIS),
        ("rediss://127.0.0.1:1/0", "redis", Broker.REDIS),
        ("redis+socket:///tmp/no.sock", "redis", Broker.REDIS),
        ("sentinel://127.0.0.1:1/0;sentinel://127.0.0.1:2/0", "redis", Broker.REDIS),
        (["sentinel://127.0.0.1:1/0", "sentinel://127.0.0.1:2/0"], "redis", Broker.REDIS),
        (["amqp://a//", "amqp://b//"], "rabbitmq", Broker.RABBITMQ),
        ("pyamqp://a//;pyamqp://b//", "rabbitmq", Broker.RABBITMQ),
    ],
)
def test_the_first_address_says_what_the_broker_is(url, system, broker):
    """In spans, for priorities, and for who keeps idempotency keys."""
    app = app_at(url, broker_transport_options={"master_name": "mine"})
    assert Broker.of(app) is broker
    assert _messaging_system(app) == system
    if broker is Broker.REDIS:
        leases_of(app)
    else:
        with pytest.raises(ConfigurationError, match="needs a Redis"):
            leases_of(app)


def test_settings_read_anew_have_leases_of_their_own():
    """And a ceiling of their own, where what is in hand is not renewed."""
    app = app_at(NOWHERE, broker_transport_options={"visibility_timeout": 1000})
    app.conf.budgets_redis_transport = "budgets"
    reread(app)
    assert broker_ceiling(app, 1.0) is None
    app.conf.budgets_redis_transport = "kombu"
    reread(app)
    before, ceiling = leases_of(app), broker_ceiling(app, 1.0)
    assert leases_of(app) is before
    app.conf.broker_transport_options = {"visibility_timeout": 2000}
    reread(app)
    assert leases_of(app) is not before
    assert broker_ceiling(app, 1.0) == ceiling + 1000


def test_sentinels_without_the_name_of_their_master():
    """What is wrong is said."""
    with pytest.raises(ConfigurationError, match="master_name"):
        leases_of(app_at("sentinel://127.0.0.1:1/0"))
