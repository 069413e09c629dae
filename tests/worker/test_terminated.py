"""Calls that are terminated: revoked at once, and no slot is free before its process is."""

from __future__ import annotations

import os
import signal

import pytest
from celery.exceptions import TaskRevokedError

from tests.support.marks import first_of
from tests.support.waiting import wait_until

APP = "tests.worker.signals_app"


@pytest.fixture(scope="module")
def running(module_worker):
    """Two processes for a lane of one: a slot that is given away too early is used at once."""
    return module_worker(APP, "-Q", "one,short")


@pytest.fixture
def app(running, load_module_app):
    return load_module_app(APP)


def marked(module, task_id, what, timeout=15.0):
    """Return when the body of a call did *what*, in seconds since the epoch."""

    def when():
        lines = [line.decode().split() for line in module.app.backend.client.lrange("marks", 0, -1)]
        return next((float(at) for one, done, at in lines if (one, done) == (task_id, what)), None)

    return wait_until(when, f"{task_id} {what}", timeout=timeout)


def active(module):
    return module.budgets.concurrency().lanes["one"].active


def revoked(module, result, name):
    """Revoke a call that has begun; return when it began."""
    began = marked(module, result.id, "began")
    module.app.control.revoke(result.id, terminate=True, signal=name)
    return began


def test_a_body_may_tidy_up_after_sigusr1(app, running):
    """SoftTimeLimitExceeded at once, as in plain Celery; the slot is held meanwhile."""
    result = app.tidies_up.delay()
    began = revoked(app, result, "SIGUSR1")
    assert marked(app, result.id, "told") - began < 2.0, running.tail()
    assert active(app) == 1
    after = app.next_one.delay()
    assert marked(app, after.id, "began") >= marked(app, result.id, "ended")
    running.wait_for_log("budgets.call_ended", "outcome=revoked", result.id)
    wait_until(lambda: active(app) == 0, "the slot is free")


@pytest.mark.parametrize(
    ("name", "ignored"),
    first_of(
        ("SIGUSR1", ()), ("SIGTERM", ("SIGTERM",)), ("SIGUSR2", ("SIGUSR2",)), ("SIGINT", ()),
        ("SIGHUP", ("SIGHUP",)), ("SIGWINCH", ()), ("SIGCONT", ()), everyday=2,
    ),
)  # fmt: skip
def test_no_slot_is_free_before_its_process_is(app, running, name, ignored):
    """Whatever the signal is, and whatever the body makes of it; the call itself is revoked."""
    result = app.goes_on.delay(ignored)
    revoked(app, result, name)
    after = app.next_one.delay()
    running.wait_for_log("budgets.call_ended", "outcome=revoked", result.id)
    ended = marked(app, result.id, "ended")
    assert marked(app, after.id, "began") >= ended, running.tail()
    wait_until(lambda: active(app) == 0, "the slot is free")
    assert app.budgets.statistics().lanes["one"].outcomes["worker_lost"] == 0


def test_a_stopped_process_keeps_its_slot_until_it_is_killed(app, running):
    """By its hard limit, of 1.5 s."""
    result = app.is_stopped.delay()
    began = revoked(app, result, "SIGSTOP")
    after = app.next_one.delay()
    assert marked(app, after.id, "began") - began >= 1.5 - 0.2, running.tail()
    wait_until(lambda: active(app) == 0, "the slot is free")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGUSR2", "SIGQUIT"])
def test_a_process_that_dies_of_the_signal_frees_its_slot(app, running, name):
    """Soon, and once."""
    result = app.tidies_up.delay()
    revoked(app, result, name)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)
    assert app.next_one.delay().get(timeout=10)
    wait_until(lambda: active(app) == 0, "the slot is free")


def test_a_call_that_is_revoked_by_its_stamps(app, running):
    """It goes the same way."""
    result = app.tidies_up.apply_async(stamped_headers=["customer"], customer="nine")
    marked(app, result.id, "began")
    app.app.control.revoke_by_stamped_headers(
        {"customer": "nine"}, terminate=True, signal="SIGUSR1"
    )
    after = app.next_one.delay()
    assert marked(app, after.id, "began") >= marked(app, result.id, "ended")
    wait_until(lambda: active(app) == 0, "the slot is free")


def test_a_process_that_outlived_a_signal_is_lost_by_a_later_call(app, running):
    """That is no second termination, for which billiard takes it."""
    lost = app.budgets.statistics().lanes["one"].outcomes["worker_lost"]
    result = app.goes_on.delay()
    revoked(app, result, "SIGUSR1")
    marked(app, result.id, "ended")
    for _ in range(2):  # one of two processes has outlived it
        app.dies.delay()
    wait_until(
        lambda: app.budgets.statistics().lanes["one"].outcomes["worker_lost"] == lost + 2,
        "both are lost", detail=running.tail,
    )  # fmt: skip


def test_the_soft_signal_from_a_shell(app, running):
    """As in plain Celery it raises, whoever sends it: `kill -USR1 PID`."""
    result = app.tidies_up.delay()
    began = marked(app, result.id, "began")
    pid = next(iter(running.wait_active()))["worker_pid"]
    wait_until(lambda: app.app.backend.client.time()[0] > began + 1.5, "it has run for a second")
    os.kill(pid, signal.SIGUSR1)
    told = marked(app, result.id, "told")
    assert told - began < 3.5, running.tail()
