"""Time limits on the threads pool: a thread cannot be killed, but it can be given up."""

from __future__ import annotations

import time

import pytest
from celery.exceptions import TimeLimitExceeded

from celery_budgets.worker.pool.abandoned_threads import EXIT_CODE
from tests.support.waiting import wait_until
from tests.worker.limits_app import HARD, LONG
from tests.worker.test_time_limits import APP, HARD_LATE, calls_of, error_of


def abandoned(limits):
    """Return how many threads run on, as the worker tells it."""
    replies = limits.app.control.broadcast("budgets", reply=True, timeout=0.5)
    return [answer["abandoned_threads"] for reply in replies for answer in reply.values()]


def test_an_abandoned_thread_gives_its_slot_back(worker, load_app):
    """With one slot the next call runs while the old thread sleeps on; nothing comes of it."""
    limits = load_app(APP)
    running = worker(APP, "-Q", "lane", "-P", "threads", "-c", "1")
    began = time.monotonic()
    given_up, waiting = limits.sleeping.delay(), limits.quick.delay("next")
    assert waiting.get(timeout=10) == "next"
    assert time.monotonic() - began < HARD + 2 * HARD_LATE < LONG
    assert isinstance(error_of(given_up), TimeLimitExceeded)
    assert abandoned(limits) == [1]
    wait_until(lambda: abandoned(limits) == [0], "the thread comes back", timeout=2 * LONG)
    # The caller's result and the count of calls stay as they were.
    assert given_up.state == "FAILURE"
    assert dict(calls_of(limits, "sleeping").outcomes) == {"hard_time_limit": 1}
    assert running.stop() == 0


@pytest.mark.slow
def test_a_stop_does_not_wait_for_an_abandoned_thread(worker, load_app):
    """A warm stop ends the worker while the thread would sleep on for a minute."""
    limits = load_app(APP)
    running = worker(APP, "-Q", "lane", "-P", "threads", "-c", "1")
    assert isinstance(error_of(limits.warned.apply_async((60,), time_limit=0.5)), TimeLimitExceeded)
    assert abandoned(limits) == [1]
    assert running.stop(timeout=15) == 0


@pytest.mark.slow
def test_a_thread_that_comes_back_is_not_one_too_many(worker, load_app):
    """One slot stays one slot, also where early acknowledgement lets messages in."""
    limits = load_app(APP)
    running = worker(APP, "-Q", "early", "-P", "threads", "-c", "1")
    late = [limits.one_at_a_time.delay(1.5) for _ in range(2)]
    assert all(isinstance(error_of(result), TimeLimitExceeded) for result in late)
    wait_until(lambda: abandoned(limits) == [0], "both threads come back", timeout=20)
    limits.redis().delete("together", "running")
    results = [limits.one_at_a_time.delay(0.1) for _ in range(6)]
    assert [result.get(timeout=20) for result in results] == [None] * 6
    assert {int(n) for n in limits.redis().lrange("together", 0, -1)} == {1}, running.tail()


def test_too_many_abandoned_threads_make_the_worker_leave(worker, load_app):
    """It finishes what it has, exits with its documented code and waits for no lost thread."""
    limits = load_app(APP)
    environment = {"MAX_ABANDONED": "1"}
    running = worker(APP, "-Q", "lane", "-P", "threads", "-c", "4", env=environment)
    # Two that sleep on past their hard limits, and one within its own that is let finish.
    lost = [limits.warned.apply_async((60,), time_limit=1.0) for _ in range(2)]
    kept = limits.warned.apply_async((1.3,), soft_time_limit=5)
    assert all(isinstance(error_of(result), TimeLimitExceeded) for result in lost)
    assert kept.get(timeout=10) == "in time"
    assert running.wait_exit(timeout=20) == EXIT_CODE
    assert "budgets.worker_leaves abandoned=2 most=1" in running.log
