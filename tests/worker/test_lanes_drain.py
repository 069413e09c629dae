"""`celery lanes drain` has workers finish and stop; `--forecast` tells how long that takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from celery.utils.nodenames import gethostname

from tests.support.places import ROOT
from tests.support.waiting import values_of, wait_until

APP = "tests.worker.draining_app"


def drain(servers, *arguments):
    """Return the exit code of `celery lanes drain`, and what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", APP, "lanes", "drain", *arguments],
        cwd=ROOT, env=os.environ | servers.environment,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def node(running):
    return f"{running.name}@{gethostname()}"


def begun(module, result):
    return module.redis().llen(f"began:{result.id}")


def test_a_worker_finishes_and_stops(worker, load_app, servers, broker_url):
    """What waits behind the running calls goes on elsewhere, and once."""
    module = load_app(APP)
    running = worker(APP, "-Q", "lane", "-c", "2")
    results = [module.long.delay(5) for _ in range(2)]
    running.wait_active(2)
    waiting = [module.long.delay(0) for _ in range(4)]
    code, text = drain(servers, "-d", node(running))
    assert code == 0, text
    assert f"{node(running)}: waits for 2: " in text
    assert results[0].id in text
    assert f"{node(running)}: nothing runs; it stops" in text
    assert running.wait_exit() == 0
    assert values_of(results, timeout=2) == ["done"] * 2
    assert [begun(module, result) for result in waiting] == [0] * 4
    worker(APP, "-Q", "lane")
    assert values_of(waiting, timeout=20) == ["done"] * 4
    assert [begun(module, result) for result in [*results, *waiting]] == [1] * 6


def test_no_wait_returns_at_once(worker, load_app, servers):
    module = load_app(APP)
    running = worker(APP, "-Q", "lane", "-P", "threads")
    result = module.long.delay(6)
    running.wait_active(1)
    code, text = drain(servers, "--no-wait")
    assert (code, "will stop after 1" in text) == (0, True), text
    assert running.returncode is None
    assert running.wait_exit() == 0
    assert result.get(timeout=2) == "done"


def test_no_worker(load_app, servers):
    load_app(APP)
    code, text = drain(servers, "-d", "nobody@nowhere", "--timeout", "1")
    assert (code, "no answer from nobody@nowhere" in text) == (1, True)
    assert drain(servers, "--timeout", "1")[0] == 1


def test_forecast(worker, load_app, servers):
    """By the history of the task in this worker; nothing is stopped."""
    module = load_app(APP)
    running = worker(APP, "-Q", "lane")
    values_of([module.usual.delay(0.5) for _ in range(4)], timeout=20)
    module.usual.delay(30)
    wait_until(lambda: running.wait_active(1), "it runs")
    code, text = drain(servers, "--forecast")
    assert code == 0, text
    assert f"{node(running)}: 1 calls run: 50 % chance to end in" in text
    assert "terminationGracePeriodSeconds: 160 loses nothing" in text
    assert re.search(r"at most 1[34]\d", text)
    assert running.returncode is None
    running.kill()
