"""A worker that stops with a known grace: what has no chance goes on elsewhere, at once."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.support.marks import first_of
from tests.support.waiting import values_of, wait_until

APP = "tests.worker.draining_app"
GRACE = 8.0
ENVIRONMENT = {"CELERY_BUDGETS_STOP_GRACE": f"{GRACE:g}s"}


def began(module, result):
    return module.redis().lrange(f"began:{result.id}", 0, -1)


def line_of(running, result, event):
    """What its log says of a call."""
    lines = (line for line in running.log.splitlines() if event in line)
    (line,) = [line for line in lines if f"task_id={result.id}" in line]
    return line


def waiting(module):
    """How many messages are in the queue."""
    with module.app.connection_for_read() as connection:
        try:
            return connection.default_channel.queue_declare("lane", passive=True).message_count
        except connection.channel_errors:
            return 0  # Redis has no empty lists


def runs(module, running, *results):
    wait_until(lambda: all(began(module, each) for each in results), "all run", timeout=20)
    running.wait_active(len(results))


def test_what_has_no_chance_is_handed_back_at_once(worker, load_app, broker_url):
    """A long one starts elsewhere; one that usually ends in time does; one that may not, stays."""
    module = load_app(APP)
    running = worker(APP, "-Q", "lane", env=ENVIRONMENT)
    values_of([module.usual.delay(1.5) for _ in range(4)], timeout=20)
    long, usual, once = module.long.delay(60), module.usual.delay(1.5), module.once.delay(60)
    runs(module, running, long, usual, once)
    stopped_at = time.monotonic()
    os.kill(running.pid, signal.SIGTERM)
    wait_until(lambda: waiting(module) == 1, "the long one is in its queue", timeout=GRACE)
    assert time.monotonic() - stopped_at < GRACE - 2
    other = worker(APP, "-Q", "lane", env=ENVIRONMENT)
    assert long.get(timeout=20) == "done"
    assert [name.partition("@")[0] for name in began(module, long)] == [running.name, other.name]
    assert usual.get(timeout=20) == "done"
    assert len(began(module, usual)) == 1
    assert "chance=0%: handed back" in line_of(running, long, "budgets.drain ")
    assert "chance=100%: gets the grace" in line_of(running, usual, "budgets.drain ")
    assert "left until the end" in line_of(running, once, "budgets.drain ")
    assert "outcome=retried" in line_of(running, long, "budgets.call_ended")
    running.wait_for_log("budgets.drain_leaves", once.id, timeout=2 * GRACE)
    assert running.returncode is None
    running.kill()
    assert len(began(module, once)) == 1


@pytest.mark.slow
def test_the_rest_is_handed_back_in_the_last_second(worker, load_app, broker_url):
    """And the worker has ended by itself when the grace is over."""
    module = load_app(APP)
    running = worker(APP, "-Q", "lane", env=ENVIRONMENT)
    values_of([module.usual.delay(3) for _ in range(4)], timeout=20)
    results = [module.usual.delay(60) for _ in range(3)]
    runs(module, running, *results)
    stopped_at = time.monotonic()
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait_exit() == 0
    assert GRACE - 3 < time.monotonic() - stopped_at < GRACE + 2
    worker(APP, "-Q", "lane", env=ENVIRONMENT)
    assert values_of(results, timeout=20) == ["done"] * 3


@pytest.mark.slow
def test_what_a_drain_has_left_is_handed_back_in_two_seconds(worker, load_app, broker_url):
    """As on Kubernetes, whose grace is over while ``preStop`` drains; also out of C code."""
    module = load_app(APP)
    environment = {"CELERY_BUDGETS_STOP_GRACE": "2s"}
    running = worker(APP, "-Q", "wide", env=environment)
    results = [module.in_c_code.delay(60) for _ in range(16)]
    runs(module, running, *results)
    asked = {"watched": True}
    assert module.app.control.broadcast("lanes_drain", asked, reply=True, timeout=5, limit=1)
    running.wait_for_log("budgets.leaving")
    stopped_at = time.monotonic()
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait_exit() == 0
    assert time.monotonic() - stopped_at < 8  # 1.7, and 0.1 more for each if one after the other
    assert running.log.count("outcome=retried") == 16
    worker(APP, "-Q", "wide", env=environment)
    assert values_of(results, timeout=20) == ["done"] * 16


@pytest.mark.slow
@pytest.mark.parametrize("pool", first_of("threads", "gevent", "solo", everyday=1))
def test_a_pool_without_processes_tells_and_waits(worker, load_app, pool):
    module = load_app(APP)
    running = worker(APP, "-Q", "lane", "-P", pool, env=ENVIRONMENT)
    result = module.long.delay(4)
    wait_until(lambda: began(module, result), "it runs", timeout=20)
    if pool != "solo":
        running.wait_active(1)
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait_exit() == 0
    assert result.get(timeout=5) == "done"
    assert len(began(module, result)) == 1
    if pool != "solo":  # where nothing runs when it gets to stop
        assert "left until the end" in line_of(running, result, "budgets.drain ")


@pytest.mark.parametrize("grace", [{}, {"CELERY_BUDGETS_STOP_GRACE": "100s"}])
def test_without_a_grace_and_with_a_long_one_all_end(worker, load_app, grace):
    module = load_app(APP)
    running = worker(APP, "-Q", "lane", env=grace)
    results = [module.long.delay(2), module.once.delay(2)]
    runs(module, running, *results)
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait_exit() == 0
    assert values_of(results, timeout=2) == ["done"] * 2
    assert [len(began(module, result)) for result in results] == [1, 1]


def test_what_was_saved_survives(worker, load_app):
    """Seven steps before the stop, the other three after it."""
    module = load_app("tests.worker.saving_app")
    running = worker("tests.worker.saving_app", "-Q", "lane", env=ENVIRONMENT)
    result = module.work.delay()
    steps = f"steps:{result.id}"
    wait_until(lambda: module.redis().llen(steps) == 7, "seven steps")
    running.wait_active(1)
    worker("tests.worker.saving_app", "-Q", "lane", env=ENVIRONMENT)
    os.kill(running.pid, signal.SIGTERM)
    assert result.get(timeout=20) == 7
    assert module.redis().lrange(steps, 0, -1) == [str(step) for step in range(1, 11)]
