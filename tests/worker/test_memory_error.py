"""A MemoryError in a call is that call's end, and nobody else's.

Plain Celery stops the whole worker: billiard.pool.ApplyResult._set lets a MemoryError through
to the event loop.
"""

from __future__ import annotations

import os
import signal

import pytest

from celery_budgets import MemoryLimitExceeded
from tests.support import wait_until

APP = "tests.worker.memory_error_app"


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_the_caller_learns_it_and_the_worker_lives_on(worker, load_app, pool):
    """MemoryLimitExceeded with the RSS, on every pool; the same worker takes the next call."""
    app = load_app(APP)
    running = worker(APP, "-Q", "critic", "-P", pool, *(() if pool == "solo" else ("-c", "1")))
    before = app.pid.delay().get(timeout=30)
    for task in (app.raising, app.too_much):
        result = task.delay()
        with pytest.raises(MemoryLimitExceeded) as caught:
            result.get(timeout=30)
        assert 10_000_000 < caught.value.rss < 10_000_000_000
        assert caught.value.limit is None
        assert str(caught.value).startswith("out of memory: MemoryError in the call at ")
        assert result.state == "FAILURE"
        assert f"in {task.name}" in result.traceback
    assert app.handling.delay().get(timeout=30) == "handled"
    assert app.pid.delay().get(timeout=30) == before
    assert running.returncode is None

    def outcomes():
        lanes = app.budgets.statistics(timeout=0.5).lanes
        return lanes["critic"].outcomes if "critic" in lanes else {}

    wait_until(
        lambda: outcomes() == {"memory_limit": 2, "succeeded": 3}, "all five calls are counted"
    )
    assert "Unrecoverable error" not in running.log


def test_the_worker_serves_after_the_loss_of_its_process(worker, load_app):
    """A process that the system kills is replaced, as ever."""
    app = load_app(APP)
    worker(APP, "-Q", "critic", "-c", "1")
    first = app.pid.delay().get(timeout=30)
    os.kill(first, signal.SIGKILL)
    assert app.pid.delay().get(timeout=30) != first
