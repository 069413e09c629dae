"""An app that nobody holds any more is freed, with all that was made for it."""

from __future__ import annotations

import gc
import weakref

import pytest
from celery import Celery, group, signals

from celery_budgets import BudgetedTask, Budgets, Lane
from celery_budgets.config.settings import settings_of

APPS = 200
#: Messages that nobody takes.
NOWHERE = "memory://"


def plain(app):
    """Nothing but the app."""


def bound(app):
    Budgets(app)


def with_tasks(app):
    Budgets(app)

    @app.task(base=BudgetedTask, name="fs_read", shared=False)
    def fs_read(path):
        return path

    app.finalize()
    assert fs_read.home().name == "file_read"


def with_settings(app):
    Budgets(app)
    assert settings_of(app).lanes["critic"].concurrency == 3


def with_a_block(app):
    budgets = Budgets(app, lanes=[Lane("lane", 2)])
    with budgets.call("lane"):
        pass
    assert budgets.local_statistics().total.succeeded == 1


def with_calls(app):
    Budgets(app)

    @app.task(base=BudgetedTask, name="fs_read", shared=False)
    def fs_read(path):
        return path

    fs_read.delay("x")
    group(fs_read.s(path) for path in "xy").delay()
    fs_read.apply(("x",)).get()


def with_a_scope(app):
    budgets = Budgets(app)
    with budgets.scope("request", max_calls=2):
        pass


@pytest.mark.parametrize(
    "used", [plain, bound, with_tasks, with_settings, with_a_block, with_calls, with_a_scope]
)
def test_apps_are_freed(used):
    """All of 200 but one, which Celery may keep as the current one."""
    receivers = {name: listening(signal) for name, signal in all_signals()}
    apps = []
    for _ in range(APPS):
        app = Celery("freed", broker=NOWHERE, backend="cache+memory://", set_as_current=False)
        used(app)
        apps.append(weakref.ref(app))
    del app
    gc.collect()
    assert sum(app() is not None for app in apps) <= 1
    for name, signal in all_signals():
        assert listening(signal) <= receivers[name] + 1, name


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_workers_of_an_app_are_freed(pool):
    """Of five in one process, one after the other, only the last one listens on."""
    app = Celery("workers", broker=NOWHERE, backend="cache+memory://", set_as_current=False)
    Budgets(app)
    workers, received, ended = [], [], []
    for _ in range(5):
        worker = app.WorkController(pool=pool, hostname="freed@here", loglevel="ERROR")
        workers.append(weakref.ref(worker))
        received.append(listening(signals.task_received))
        ended.append(listening(signals.worker_shutdown))
        del worker
        gc.collect()
    assert received[0] > 0, "the worker does not listen, so this test sees nothing"
    assert sum(worker() is not None for worker in workers) <= 1
    assert received[-1] <= received[1]
    assert ended[-1] <= ended[1]


def listening(signal):
    signal._live_receivers(None)  # drops those that are gone
    return len(signal.receivers)


def all_signals():
    return [(name, getattr(signals, name)) for name in signals.__all__]
