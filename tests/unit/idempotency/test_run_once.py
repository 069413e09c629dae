"""Idempotency keys in the process that sends, and which Redis keeps them."""

from __future__ import annotations

from time import monotonic

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from redis.exceptions import ConnectionError as RedisConnectionError

from celery_budgets import BudgetedTask, Budgets, ConfigurationError
from celery_budgets.config.settings import Settings
from celery_budgets.execution.call import Call
from celery_budgets.execution.limits.interrupts import ProcessInterrupt
from celery_budgets.execution.limits.watchdog import TICK, Watchdog
from celery_budgets.idempotency import run_once as idempotency
from celery_budgets.idempotency.run_once import task_id_of
from celery_budgets.model.budget import Budget, TimeLimits
from celery_budgets.shared_state.lease_store import leases_of
from celery_budgets.shared_state.leases import Lease, State
from celery_budgets.shared_state.renewal import LeaseRenewal

NOWHERE = {"broker": "memory://", "backend": "cache+memory://"}


def app_with(broker="memory://", backend="cache+memory://", **settings):
    app = Celery("keys", broker=broker, backend=backend)
    app.conf.update({f"budgets_{name}": value for name, value in settings.items()})
    Budgets(app)
    return app


def tool_of(app, **options):
    @app.task(base=BudgetedTask, name="tool", **options)
    def tool(number=1):
        return number

    return tool


def test_a_key_makes_the_id(redis_url, published):
    """The same for the same task and key; one that is given stays."""
    tool = tool_of(app_with(idempotency_url=redis_url))
    first, second = (tool.apply_async(idempotency_key="a") for _ in range(2))
    own = tool.apply_async(idempotency_key="a", task_id="own")
    assert first.id == second.id == task_id_of("tool", "a") == published[0]["id"]
    assert own.id == published[2]["id"] == "own"
    assert {headers["budgets_idempotency_key"] for headers in published} == {"a"}
    assert len({task_id_of("tool", "a"), task_id_of("tool", "b"), task_id_of("other", "a")}) == 3


def test_a_call_by_name_alone_carries_it_too(redis_url, published):
    """Under an id of its own: celery.app.base.send_task has made that already."""
    app = app_with(idempotency_url=redis_url)
    app.send_task("elsewhere", idempotency_key="a")
    assert published[0]["budgets_idempotency_key"] == "a"


def test_an_old_failure_is_not_taken_for_the_new_call_s(redis_url):
    """Its result is dropped where the call is sent anew; a success stays."""
    app = app_with(backend=redis_url)
    tool = tool_of(app)
    result = tool.AsyncResult(task_id_of("tool", "a"))
    app.backend.mark_as_failure(result.id, ValueError("old"))
    for _ in range(2):  # what two of its twins have told, and nobody has read
        app.backend._pending_messages.put(result.id, app.backend.get_task_meta(result.id))
    assert tool.apply_async(idempotency_key="a").state == "PENDING"
    assert app.backend._pending_messages.take(result.id, None) is None
    app.backend.mark_as_done(result.id, "good")
    assert tool.apply_async(idempotency_key="a").state == "SUCCESS"


def test_eager_calls_run_each_time():
    """And need no Redis."""
    app = app_with()
    app.conf.task_always_eager = True
    tool = tool_of(app)
    assert tool.apply_async((3,), idempotency_key="a").get() == 3
    assert tool.apply_async((4,), idempotency_key="a").get() == 4


@pytest.mark.parametrize("where", ["setting", "backend", "broker"])
def test_the_redis_is_that_of_the_setting_else_of_the_backend_else_the_broker(
    redis_database, where
):
    """Each one is a database of its own: the record is in that one alone."""
    urls = {name: redis_database() for name in ("setting", "backend", "broker")}
    names = list(urls)
    given = {name: urls[name] for name in names[names.index(where) :]}
    app = app_with(
        given["broker"], given.get("backend", "cache+memory://"),
        idempotency_url=given.get("setting"),
    )  # fmt: skip
    assert leases_of(app).take("a").state is State.FREE
    there = app_with(idempotency_url=urls[where])
    assert leases_of(there).take("a").state is State.RUNNING


def test_keys_have_the_prefix_of_the_app_s_own(redis_url):
    """Two apps that share a Redis by `global_keyprefix` share no keys."""
    app = app_with(backend=redis_url)
    app.conf.result_backend_transport_options = {"global_keyprefix": "mine:"}
    assert leases_of(app).take("a").state is State.FREE
    assert app.backend.client.keys("mine:*") == [b"mine:celery-budgets:call:a"]


def test_a_server_that_does_not_answer_is_not_waited_for():
    """Longer than a fifteenth of the lease; nobody listens on port 1."""
    leases = leases_of(app_with(idempotency_url="redis://127.0.0.1:1/0"))
    with pytest.raises(RedisConnectionError):
        leases.take("a")


def test_without_a_redis_the_caller_is_told_the_remedy():
    with pytest.raises(ConfigurationError, match="set budgets_idempotency_url"):
        tool_of(app_with()).apply_async(idempotency_key="a")


def test_the_settings_are_checked_and_their_password_is_not_shown():
    settings = Settings.from_mapping(
        {"idempotency_url": "redis://:secret@host/1", "idempotency_retention": "2d",
         "idempotency_lease": "10s"}
    )  # fmt: skip
    assert (settings.idempotency_retention, settings.idempotency_lease) == (172800.0, 10.0)
    assert "secret" not in repr(settings)
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_mapping(
            {"idempotency_url": "amqp://:secret@host", "idempotency_retention": 0,
             "idempotency_lease": "500ms"}
        )  # fmt: skip
    assert "secret" not in str(caught.value)
    assert len(caught.value.problems) == 3


@pytest.fixture
def prefork(monkeypatch):
    """The watchdog of a pool process, at whose hard limits the worker acts first."""
    dog = Watchdog(ProcessInterrupt())
    monkeypatch.setattr(idempotency, "watchdog", lambda: dog)
    return dog


def call_with_limits(soft, hard):
    return Call("id", "lane", Budget(), TimeLimits(soft, hard))


def test_a_holder_that_cannot_renew_is_ended_while_it_has_its_lease(prefork):
    """Also by the watchdog, which acts some time after a limit."""
    call, lease = call_with_limits(100, 150), Lease("name", "holder", 1, monotonic() + 5)
    idempotency._stop(call, lease)
    acts_at = call.hard_at + prefork.interrupt.hard_grace + TICK
    assert lease.valid_until - 1 < acts_at < lease.valid_until
    assert call.soft_at <= monotonic()


def test_a_holder_whose_lease_is_another_s_may_stop_by_itself(prefork):
    call, lease = call_with_limits(100, 150), Lease("name", "holder", 1, monotonic() - 5)
    idempotency._stop(call, lease)
    assert call.soft_at <= monotonic() < call.hard_at <= monotonic() + 1


def test_a_lease_is_not_renewed_for_a_call_that_was_interrupted_before_its_body(
    redis_url, monkeypatch
):
    """Right after the keeper has taken it on."""
    held = LeaseRenewal()
    hold = held.hold

    def hold_and_be_interrupted(*arguments):
        hold(*arguments)
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(held, "hold", hold_and_be_interrupted)
    monkeypatch.setattr(idempotency, "keeper", lambda: held)
    tool = tool_of(app_with(idempotency_url=redis_url))
    tool.push_request(id="id", called_directly=False, budgets_idempotency_key="a")
    try:
        with pytest.raises(SoftTimeLimitExceeded):
            idempotency.run_once(tool, None, tool.run)
    finally:
        tool.pop_request()
    assert not held._held


@pytest.mark.parametrize(
    ("headers", "task_id", "stands"),
    [
        ({}, task_id_of("tool", "a"), True),
        ({}, "its own", False),
        ({"budgets_waited_for": None}, task_id_of("tool", "a"), False),
        ({"budgets_idempotency_key": 7}, task_id_of("tool", "a"), False),
    ],
)
def test_which_delivery_stands_for_a_twin(headers, task_id, stands):
    """One that has waited for it, under the id of both; anybody may send any header."""
    whole = {"budgets_idempotency_key": "a", "budgets_waited_for": [1, 1]}
    assert idempotency.stands_for_twin(whole | headers, "tool", task_id) is stands
