"""Where calls are on each pool, and what ``celery lanes`` shows of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from tests.support.places import ROOT
from tests.support.waiting import wait_until
from tests.worker.hanging_app import OWN
from tests.worker.test_stacks import APP, JSON_LINES, ended, record_of

POOLS = {
    "threads": {"hang": ("sleep", "lock"), "soft": ()},
    "gevent": {"hang": ("sleep",), "soft": ("sleep",)},
    "solo": {"hang": ("sleep", "lock", "event_loop"), "soft": ("sleep",)},
}


@pytest.mark.parametrize("pool", POOLS)
def test_other_pools_show_where_a_call_was(worker, load_app, pool):
    """The watchdog writes it down just before the hard limit, and at the soft one."""
    slots = "1" if pool == "solo" else "4"
    running = worker(APP, "-P", pool, "-c", slots, env=JSON_LINES)
    module = load_app(APP)
    for way in POOLS[pool]["hang"]:
        result = module.hang.delay(way)
        ended(result, TimeLimitExceeded)
        stack = record_of(running, result.id)["stack"]
        assert OWN[way] in [frame["function"] for frame in stack], stack
        assert stack[0]["function"] == "hang"
    for way in POOLS[pool]["soft"]:
        result = module.give_way.delay(way)
        assert OWN[way] in ended(result, SoftTimeLimitExceeded)
    assert module.quick.delay().get(timeout=10) == "next"


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_where_a_running_call_is(worker, load_app, pool):
    """By its id and by its lane, and it goes on; a call that runs nowhere is not found."""
    running = worker(APP, "-P", pool, "-c", "4")
    module = load_app(APP)
    ways = ("sleep", "lock", "event_loop") if pool != "gevent" else ("sleep",)
    results = {way: module.stay.delay(way) for way in ways}
    running.wait_active(len(ways))
    stacks = wait_until(
        lambda: len(found := module.budgets.stacks(lane="long")) == len(ways) and found,
        "all calls run",
    )
    assert {one.task_id for one in stacks} == {result.id for result in results.values()}
    for way, result in results.items():
        (one,) = module.budgets.stacks(result.id)
        functions = [frame.function for frame in one.stack.frames]
        assert (functions[0], f"in_{way}" in functions) == ("stay", True), functions
        assert one.stack.label.startswith("hanging_app.py:")
    printed = lanes(running, "stack", results["sleep"].id)
    assert "time.sleep(30)" in printed
    assert "no call nobody runs" in lanes(running, "stack", "nobody", code=1)
    assert json.loads(lanes(running, "stack", "--lane", "long", "--json"))
    assert len(module.budgets.stacks(lane="long")) == len(ways), "they go on"
    running.kill()  # it would wait for them


def test_kills_are_grouped_by_place_and_outlive_the_worker(worker, load_app):
    """In the Redis of the leases; each is counted once, though the worker remembers it too."""
    running = worker(APP, "-c", "4")
    module = load_app(APP)
    for result in [module.hang.delay("sleep") for _ in range(3)]:
        ended(result, TimeLimitExceeded)
    ended(module.hang.delay("lock"), TimeLimitExceeded)
    printed = wait_until(
        lambda: "4 kills" if len(module.budgets.kills()) == 4 else None, "all kills are known"
    ) and lanes(running, "kills")
    assert "3 of 4 in hanging_app.py:" in printed
    assert f"in_sleep ({module.hang.name}), hard time limit" in printed
    assert running.stop() == 0
    kept = module.budgets.kills()
    assert [kill.stack.innermost.function for kill in kept].count("in_sleep") == 3


def lanes(running, *arguments, code=0):
    """Return what a command of ``celery lanes`` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", APP, "lanes", *arguments],
        env=os.environ | running.servers.environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr
