"""Stops at random moments, under a load of short calls: nothing is lost, nothing runs twice.

``BUDGETS_TEST_STOPS`` says how many stops each test makes (2).
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import ExitStack

import pytest
from celery.bin.base import CLIContext
from celery.utils.nodenames import gethostname
from click.testing import CliRunner

from celery_budgets.cli import lanes
from tests.support.connections import cut_connections
from tests.support.terminals import WorkerOnTerminal
from tests.support.waiting import values_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

APP = "tests.worker.group_stop_app"
STOPS = int(os.environ.get("BUDGETS_TEST_STOPS", "2"))
#: Calls that wait at each stop: more than a worker ends before it. On gevent it takes few a second.
CALLS = {"gevent": 50}
#: Longest time between a worker's start and its stop, seconds.
LONGEST = 1.0


def wait(seconds):
    """Wait for the moment of a stop, which is to be any."""
    ends = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= ends, "the moment", interval=0.001)


def runs(module, results, what="runs"):
    redis = module.Redis.from_url(module.WHERE)
    return [int(count or 0) for count in redis.mget([f"{what}:{each.id}" for each in results])]


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_warm_stops_under_load(worker, load_app, broker_url, pool):
    """With calls of 5 ms, each of which has its effect once, and a result."""
    stop_under_load(worker, load_app, terminate, pool)


def stop_under_load(worker, load_app, stop, pool, start=None):
    module, chance = load_app(APP), random.Random(19)
    module.app.control.purge()
    results = []
    redis = module.Redis.from_url(module.WHERE)
    for _ in range(STOPS):
        waiting = len(results) - int(redis.get("effects") or 0)
        results += [module.work.delay(0.005) for _ in range(CALLS.get(pool, 300) - waiting)]
        running = (start or worker)(APP, "-Q", "lane", "-P", pool)
        wait(chance.uniform(0, LONGEST))
        stop(module, running)
        # As plain Celery has it (celery.apps.worker.install_worker_int_handler).
        assert running.wait_exit() == int(stop is interrupt), running.tail()
    last = worker(APP, "-Q", "lane", "-P", pool)
    assert values_of(results, timeout=150, detail=last.tail) == ["done"] * len(results)
    assert runs(module, results) == [1] * len(results)


def terminate(module, running):
    os.kill(running.pid, signal.SIGTERM)


def terminate_all(module, running):
    os.killpg(running.pid, signal.SIGTERM)


def hang_up(module, running):
    running.hang_up()


def interrupt(module, running):
    os.kill(running.pid, signal.SIGINT)


def drain(module, running):
    context = CLIContext(module.app, no_color=True, workdir=None)
    node = f"{running.name}@{gethostname()}"
    done = CliRunner().invoke(lanes, ["drain", "-d", node, "--no-wait"], obj=context)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("stop", [terminate_all, interrupt, drain])
def test_other_stops_under_load(worker, load_app, broker_url, stop):
    """Of the whole process group, Ctrl-C, and `celery lanes drain`."""
    stop_under_load(worker, load_app, stop, "prefork")


def test_terminals_that_hang_up_under_load(worker, load_app, broker_url, servers):
    with ExitStack() as stack:

        def start(*arguments):
            running = WorkerOnTerminal(servers, *arguments)
            stack.callback(running.close)
            return running.wait_ready()

        stop_under_load(worker, load_app, hang_up, "prefork", start)


def test_a_rolling_restart_of_four_workers(worker, load_app, broker_url):
    """Under a load of calls of 10 ms to 4 s: each has its effect once."""
    module, chance = load_app(APP), random.Random(4)
    module.app.control.purge()
    fleet = [worker(APP, "-Q", "lane", ready=False) for _ in range(4)]
    for each in fleet:
        each.wait_ready()
    results = [module.work.delay(4.0) for _ in range(8)]
    for former in fleet:
        results += [module.work.delay(chance.choice([0.01, 0.1, 1.0])) for _ in range(20)]
        worker(APP, "-Q", "lane")
        os.kill(former.pid, signal.SIGTERM)
    for former in fleet:
        assert former.wait_exit() == 0
    assert values_of(results, timeout=150) == ["done"] * len(results)
    assert runs(module, results) == [1] * len(results)


def test_a_lost_connection_in_the_middle_of_a_restart(worker, load_app, broker_url):
    """Of the worker that stops and of its successor: nothing is lost.

    What has a key has its effect once. Without one, RabbitMQ gives what ran to another worker.
    """
    module, chance = load_app(APP), random.Random(8)
    module.app.control.purge()
    environment = {"CELERY_BUDGETS_IDEMPOTENCY_LEASE": "3s"}
    former = worker(APP, "-Q", "lane", env=environment)
    keyed = [module.work.apply_async((3.0,), idempotency_key=f"long-{n}") for n in range(2)]
    former.wait_active(2)
    successor = worker(APP, "-Q", "lane", env=environment)
    plain = []
    for number in range(20):
        seconds = chance.choice([0.01, 0.1, 0.5])
        keyed.append(module.work.apply_async((seconds,), idempotency_key=f"short-{number}"))
        plain.append(module.work.delay(seconds))
    os.kill(former.pid, signal.SIGTERM)
    wait(chance.uniform(0, LONGEST))
    cut_connections(broker_url)
    results = keyed + plain
    assert values_of(results, timeout=60, detail=successor.tail) == ["done"] * len(results)
    assert former.wait_exit() == 0
    assert runs(module, keyed, "effects") == [1] * len(keyed)
    if broker_url.startswith("redis"):
        assert runs(module, plain, "effects") == [1] * len(plain)
