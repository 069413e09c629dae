"""A MemoryError in a call is that call's end, and nobody else's.

Plain Celery stops the whole worker: billiard.pool.ApplyResult._set lets a MemoryError through
to the event loop.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from functools import cache

import pytest

from celery_budgets import MemoryLimitExceeded
from tests.support.apps import fresh_app
from tests.support.marks import first_of
from tests.support.waiting import wait_until

APP = "tests.worker.memory_error_app"
#: Slots by pool. On gevent one would cost seconds: with no message to spare, kombu looks at Redis
#: again only after a time-out. All calls are in the worker's own process there anyway.
SLOTS = {"gevent": ("-c", "3"), "prefork": ("-c", "1"), "threads": ("-c", "1"), "solo": ()}


@pytest.fixture(scope="module")
def workers(module_worker, new_servers):
    """``workers(name)`` is the worker of that pool; ``"loss"`` is one to lose a process."""

    def start(name):
        arguments = ("-P", name, *SLOTS[name]) if name in SLOTS else ("-c", "1")
        return module_worker(APP, "-Q", "critic", *arguments, servers=new_servers())

    return cache(start)


@pytest.fixture
def joined(workers):
    """``joined(name)`` gives that worker, ready, and the app connected to its servers."""
    with ExitStack() as stack:

        def join(name):
            running = workers(name)
            stack.callback(running.retire)
            return running, stack.enter_context(fresh_app(APP, running.servers, {}))

        yield join


@pytest.mark.parametrize("pool", first_of("prefork", "threads", "gevent", "solo", everyday=2))
def test_the_caller_learns_it_and_the_worker_lives_on(joined, pool):
    """MemoryLimitExceeded with the RSS, on every pool; the same worker takes the next call."""
    running, app = joined(pool)
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


def test_the_worker_serves_after_the_loss_of_its_process(joined):
    """A process that the system kills is replaced, as ever."""
    _, app = joined("loss")
    first = app.pid.delay().get(timeout=30)
    os.kill(first, signal.SIGKILL)
    assert app.pid.delay().get(timeout=30) != first
