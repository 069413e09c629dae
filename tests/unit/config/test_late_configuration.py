"""Settings that a program assigns after ``Budgets(app)`` take no lane from it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery import Celery
from celery.exceptions import QueueNotFound
from kombu import Queue
from kombu.common import Broadcast

from celery_budgets import Budgets, Lane
from celery_budgets.config.queues import queue_names, real_names
from celery_budgets.config.routing import LaneRouter


@pytest.fixture
def app():
    app = Celery("late", broker="memory://", backend="cache+memory://", set_as_current=False)
    assert app.conf.task_routes is None  # it is configured, as by most programs
    Budgets(app, lanes=[Lane("a"), Lane("b", tools=["fs_*"])])
    yield app
    app.close()


def by_attribute(app, **settings):
    for name, value in settings.items():
        setattr(app.conf, name, value)


def by_key(app, **settings):
    for name, value in settings.items():
        app.conf[name] = value


def by_update(app, **settings):
    app.conf.update(settings)


def by_keywords(app, **settings):
    app.conf.update(**settings)


def by_object(app, **settings):
    app.config_from_object(SimpleNamespace(**settings))


def by_forced_object(app, **settings):
    app.config_from_object(SimpleNamespace(**settings), force=True)


ways = pytest.mark.parametrize(
    "assign", [by_attribute, by_key, by_update, by_keywords, by_object, by_forced_object]
)


def queue_of(app, name):
    return app.amqp.router.route({}, name)["queue"].name


@ways
@pytest.mark.parametrize("used", [False, True])
def test_routes_assigned_later_stand_before_the_lanes(app, assign, used):
    """Also where a message was sent before: by update() Celery makes its router anew."""
    if used:
        assert queue_of(app, "fs_read") == "b"
    assign(app, task_routes={"mine": {"queue": "b"}})
    assert queue_of(app, "fs_read") == "b"
    assert queue_of(app, "else") == "a"
    if not used and assign not in (by_object, by_forced_object):
        assert queue_of(app, "mine") == "b"
    assert len([route for route in app.amqp.routes if isinstance(route, LaneRouter)]) == 1


@ways
@pytest.mark.parametrize(
    "queues", [[Queue("extra")], {"extra": {}}, {"extra": Queue("extra")}, ["extra"]]
)
def test_queues_assigned_later_stand_beside_the_lanes(app, assign, queues):
    """In each form."""
    assign(app, task_queues=queues)
    assert {"a", "b"} <= set(app.amqp.queues)
    assert {"a", "b"} <= set(app.amqp.queues.consume_from)
    if assign not in (by_object, by_forced_object):
        assert "extra" in app.amqp.queues


def test_an_app_that_had_made_its_queues_before():
    """What it has kept of them is made anew."""
    app = Celery("before", broker="memory://", set_as_current=False)
    assert app.amqp.router.route({}, "fs_read")["queue"].name == "celery"
    Budgets(app, lanes=[Lane("a"), Lane("b", tools=["fs_*"])])
    assert queue_of(app, "fs_read") == "b"


def test_missing_queues_are_made_where_the_user_says_so():
    """Otherwise a name that there is not is an error."""
    app = Celery("missing", broker="memory://", set_as_current=False)
    app.conf.task_create_missing_queues = True
    Budgets(app, lanes=[Lane("a")])
    assert app.conf.task_create_missing_queues is True
    assert app.amqp.queues["new"].name == "new"


def test_missing_queues_said_later(app):
    """As early."""
    with pytest.raises(QueueNotFound):
        app.amqp.router.route({"queue": "new"}, "fs_read")
    app.conf.task_create_missing_queues = True
    assert app.amqp.Queues(app.conf.task_queues)["new"].name == "new"


def test_a_queue_goes_by_its_alias(app):
    """A broadcast has a name that nobody knows."""
    app.conf.task_queues = [Broadcast("news"), Queue("plain", alias="p")]
    queues = app.amqp.queues
    news, plain, lane = real_names(queue_names("news,p,a"), queues)
    assert news.startswith("bcast.")
    assert (plain, lane) == ("plain", "a")
    queues.select(["news", "p"])
    assert {queue.name for queue in queues.consume_from.values()} == {news, "plain"}


def test_send_task_has_the_deadline_of_the_settings(published):
    """Its hard one too; and what makes no sense is refused."""
    app = Celery("factor", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.budgets_escalation_factor = 3.0
    Budgets(app, lanes=[Lane("a")])
    app.send_task("any", deadline=10)
    soft, hard = (at for at in published[-1]["budgets_deadline"])
    assert hard - soft == pytest.approx(20, abs=0.1)
    with pytest.raises(ValueError, match="deadline"):
        app.send_task("any", deadline="soon")
