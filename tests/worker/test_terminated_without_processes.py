"""Calls that are terminated on pools whose calls share a process."""

from __future__ import annotations

import celery

from tests.support.waiting import wait_until
from tests.worker.test_terminated import APP, active, marked, revoked


def test_a_greenlet_that_outlives_its_end_keeps_its_slot(worker, load_app):
    """On gevent whoever terminates a call throws into it, whatever the signal."""
    worker(APP, "-Q", "one", "-P", "gevent", "-c", "1")
    app = load_app(APP)
    result = app.outlives_all.delay()
    revoked(app, result, "SIGUSR1")
    after = app.next_one.delay()
    assert marked(app, after.id, "began") >= marked(app, result.id, "ended")
    wait_until(lambda: active(app) == 0, "the slot is free")
    gone = app.tidies_up.delay()
    revoked(app, gone, "SIGTERM")
    assert app.next_one.delay().get(timeout=10)
    wait_until(lambda: active(app) == 0, "the slot is free")


def test_a_thread_cannot_be_terminated(worker, load_app):
    """The worker says so, and the call runs to its own end, in its slot."""
    worker(APP, "-Q", "one", "-P", "threads", "-c", "1")
    app = load_app(APP)
    result = app.goes_on.delay()
    marked(app, result.id, "began")
    replies = app.app.control.revoke(result.id, terminate=True, reply=True, limit=1)
    assert "NotImplementedError" in str(replies)
    assert active(app) == 1
    if celery.VERSION[:2] == (5, 6):  # which has told the caller at once that it is revoked
        marked(app, result.id, "ended")
    else:
        assert result.get(timeout=10)
    wait_until(lambda: active(app) == 0, "the slot is free")
