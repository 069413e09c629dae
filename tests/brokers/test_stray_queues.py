"""Messages in the queue that was the default one before: nobody takes them, so somebody says it."""

from __future__ import annotations

import pytest
from celery import Celery

from celery_budgets import Budgets
from celery_budgets.cli import findings
from celery_budgets.worker.startup.stray_queues import undeclared_problems

APP = "tests.worker.default_lanes_app"


def test_messages_in_the_old_default_queue_are_told_of(worker, load_app, servers, broker_url):
    """By a worker at its start and by `lanes check`; an empty queue, or none, is no matter."""
    app = load_app(APP).app
    assert findings.abandoned(app) == []
    with Celery(broker=servers.broker, set_as_current=False) as plain:
        for _ in range(2):
            plain.send_task("old.task")
    (finding,) = findings.abandoned(app)
    assert finding.ok
    assert "warning: queue 'celery' holds 2 messages, and no lane has it" in finding.text
    running = worker(APP, "-Q", "critic")
    running.wait_for_log("budgets.queue_abandoned", "'celery' holds 2 messages")


@pytest.fixture
def app():
    app = Celery("stray", broker="redis://127.0.0.1:1/0", set_as_current=False)
    Budgets(app)
    return app


def test_queues_that_nobody_declares_are_named(app):
    """Of routes in each form, and of beat; those of lanes are declared."""
    app.conf.task_routes = [
        {"a.*": {"queue": "nowhere"}, "b": "critic", "c": {"queue": "critic"}},
        [("d", "elsewhere")],
    ]
    app.conf.beat_schedule = {
        "nightly": {"task": "n", "schedule": 1.0, "options": {"queue": "night"}},
        "hourly": {"task": "h", "schedule": 1.0},
    }
    problems = list(undeclared_problems(app))
    assert [problem.split(",")[0] for problem in problems] == [
        "task_routes['a.*']: queue 'nowhere' is not declared",
        "task_routes['d']: queue 'elsewhere' is not declared",
        "beat_schedule['nightly']: queue 'night' is not declared",
    ]
    assert all("task_create_missing_queues = True" in problem for problem in problems)


def test_queues_that_celery_creates_need_no_declaration():
    app = Celery("stray", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.task_create_missing_queues = True
    app.conf.task_routes = {"a": {"queue": "nowhere"}}
    Budgets(app)
    assert list(undeclared_problems(app)) == []
