"""Looking for a call that waits aside, where there is nothing to look in."""

from __future__ import annotations

from celery import Celery

from celery_budgets import Budgets, Limit
from celery_budgets.sending.why.aside import look_aside
from celery_budgets.shared_state.scripts.asides import aside_name, aside_pattern
from tests.support.programs import free_port


def app_with(*limits):
    app = Celery("aside", broker="memory://", backend=f"redis://127.0.0.1:{free_port()}/0")
    Budgets(app, limits=limits)
    return app


def test_without_limits_by_key_no_server_is_asked():
    assert look_aside(app_with(Limit("api", 2)), "id") == []


def test_a_server_that_is_away_is_told_from_an_empty_one():
    assert look_aside(app_with(Limit("tenant", 2, key="tenant")), "id") is None


def test_an_app_without_a_redis_has_nobody_aside():
    """Its workers do not start; who asks why is told of that, and not of a setting."""
    app = Celery("aside", broker="memory://")
    Budgets(app, limits=[Limit("tenant", 2, key="tenant")])
    assert look_aside(app, "id") == []


def test_an_id_leads_to_all_of_its_messages():
    first, second = aside_name("id", 1.0), aside_name("id", 2.5)
    assert first != second
    assert all(name.startswith(aside_pattern("id")[:-1]) for name in (first, second))
    assert not aside_name("\ud800*", None).startswith(aside_pattern("id")[:-1])
