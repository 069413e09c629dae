"""`celery lanes health` tells a worker that works from one that only answers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from celery.utils.nodenames import gethostname

from tests.support.marks import first_of
from tests.support.places import ROOT
from tests.support.waiting import wait_until

APP = "tests.worker.health_app"
WITHIN = 10.0


def health(servers, *arguments):
    """Return the exit code of `celery lanes health`, and what it prints."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", APP, "lanes", "health", *arguments],
        cwd=ROOT, env=os.environ | servers.environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    # And the start of Python, which may be slow on a busy machine.
    assert time.monotonic() - began < WITHIN + 10
    return done.returncode, done.stdout + done.stderr


def fresh(load_app):
    """The app, without calls that a worker of another test has left behind."""
    module = load_app(APP)
    module.app.control.purge()
    return module


def node(running):
    return f"{running.name}@{gethostname()}"


@pytest.mark.parametrize("pool", first_of("prefork", "threads", "gevent", "solo"))
def test_a_worker_that_works(worker, load_app, servers, broker_url, pool):
    """Idle, and busy."""
    module = fresh(load_app)
    running = worker(APP, "-Q", "lane,other", "-P", pool, "-c", "3")
    code, text = health(servers)
    assert (code, text.count("works: consumes")) == (0, 2), text
    if pool != "solo":  # whose main process answers nothing while a call runs
        for _ in range(5):
            module.nap.delay(20)
        running.wait_active(2)
        code, text = health(servers, "-d", node(running))
        assert code == 0, text
        assert "2 of 2 run" in text
        module.app.control.purge()
        running.kill()


@pytest.mark.parametrize("how", ["cancel_consumer", "lose_consumer"])
def test_a_worker_that_answers_and_does_not_consume(worker, load_app, servers, broker_url, how):
    module = fresh(load_app)
    running = worker(APP, "-Q", "lane")
    control, name = module.app.control, node(running)
    arguments = {"queue": "lane"} if how == "cancel_consumer" else {}
    assert control.broadcast(how, arguments, [name], reply=True, timeout=5, limit=1)
    assert control.ping(destination=[name], timeout=5)
    code, text = health(servers)
    assert code == 1, text
    assert f"{name} lane: DOES NOT WORK: does not consume its queue lane" in text


def test_a_worker_that_seems_to_consume(worker, load_app, servers, broker_url):
    """Messages wait, it has free slots, and takes none."""
    module = fresh(load_app)
    running = worker(APP, "-Q", "lane,other")
    assert module.app.control.broadcast("take_nothing", reply=True, timeout=5, limit=1)
    for _ in range(8):  # one may be on its way, and Redis is asked once more
        module.nap.delay(0)
    code, text = health(servers, "-d", node(running))
    assert code == 1, text
    assert "lane: DOES NOT WORK: messages wait in lane" in text
    assert "other: works" in text
    running.kill()


def test_a_lane_that_an_operator_has_paused_works(worker, load_app, servers):
    module = fresh(load_app)
    worker(APP, "-Q", "lane,other")
    asked = {"lane": "lane"}
    assert module.app.control.broadcast("pause_lane", asked, reply=True, timeout=5, limit=1)
    module.nap.delay(0)
    code, text = health(servers)
    assert code == 0, text
    assert "lane: works: paused by an operator" in text


def test_a_lane_whose_calls_wait_for_a_limit_works(worker, load_app, servers, broker_url):
    """It has free slots, and takes no more: what it has taken may not start yet."""
    module = fresh(load_app)
    running = worker(APP, "-Q", "limited,other")
    for _ in range(8):
        module.limited.delay(60)
        module.seldom.delay()
    running.wait_active(1)
    code, text = health(servers, "-d", node(running))
    assert code == 0, text
    assert re.search(r"limited: works: consumes; 1 of 2 run, \d waits? in the worker", text), text
    assert re.search(r"other: works: consumes; 0 of 1 run, \d waits? in the worker", text), text
    module.app.control.purge()
    running.kill()


def test_a_frozen_worker_and_none_at_all(worker, load_app, servers, broker_url):
    load_app(APP)
    running = worker(APP, "-Q", "lane")
    os.kill(running.pid, signal.SIGSTOP)
    try:
        code, text = health(servers, "-d", node(running), "--timeout", "2")
        assert (code, "no answer from" in text) == (2, True)
        assert health(servers, "--timeout", "2")[0] == 2
    finally:
        os.kill(running.pid, signal.SIGCONT)
    running.stop()
    assert health(servers, "--timeout", "1")[0] == 2


def test_processes_that_were_killed_are_missed_until_they_are_replaced(worker, load_app, servers):
    load_app(APP)
    running = worker(APP, "-Q", "lane")
    for pid in running.pool_pids():
        os.kill(pid, signal.SIGKILL)

    def all_up():
        code, text = health(servers)
        return code == 0 and "processes: works: 2 of 2 are up" in text

    wait_until(all_up, "both are replaced", timeout=30)
