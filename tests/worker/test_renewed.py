"""On Redis, what a worker has in hand is renewed: a call may outlast the visibility timeout."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner
from kombu import Connection

from celery_budgets.cli import lanes
from tests.support.waiting import values_of, wait_until

APP = "tests.worker.renewed_app"
VISIBLE = 2.0
POOLS = [
    pytest.param(pool, marks=() if pool == "prefork" else pytest.mark.slow)
    for pool in ("prefork", "threads", "gevent")
]


@contextmanager
def sweeping(url: str, visible: float = VISIBLE) -> Iterator[None]:
    """Hand out again whatever is not renewed, all the time, as a plain Celery worker does."""
    over = threading.Event()

    def sweep() -> None:
        options = {"visibility_timeout": visible}
        with Connection(url, transport_options=options) as connection:
            channel = connection.channel()
            while not over.wait(0.1):
                channel.qos.restore_visible(num=1000, interval=1)

    thread = threading.Thread(target=sweep)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def counted(app, what: str, names: list[str]) -> list[int]:
    return [int(value or 0) for value in app.backend.client.mget([f"{what}:{n}" for n in names])]


def nothing_in_hand(app) -> None:
    wait_until(lambda: not app.backend.client.zcard("unacked_index"), "all is acknowledged")


def check(app) -> list[str]:
    """The lines of `celery lanes check`."""
    context = CLIContext(app, no_color=True, workdir=None)
    return CliRunner().invoke(lanes, ["check"], obj=context).output.splitlines()


@pytest.mark.parametrize("pool", POOLS)
def test_calls_longer_than_the_visibility_timeout_run_once(pool, worker, load_app, redis_url):
    """Also those that wait for a slot meanwhile, and those that wait for their ETA."""
    module = load_app(APP)
    running = worker(APP, "-P", pool, "-Q", "long", "-c", "12")
    names = [str(number) for number in range(18)]
    with sweeping(redis_url):
        results = [module.nap.delay(name, 3 * VISIBLE) for name in names[:14]]
        for name in names[14:]:
            results.append(module.nap.apply_async((name, 0.1), countdown=10 * VISIBLE))
        for result in results:
            result.get(timeout=60)
        nothing_in_hand(module.app)
    assert counted(module.app, "begun", names) == [1] * len(names)
    assert "budgets.redelivered" not in running.log


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["solo", "threads"])
@pytest.mark.parametrize("task", ["nap", "work", "plain"])
def test_a_body_in_the_worker_main_process_keeps_nothing_from_being_renewed(
    pool, task, worker, load_app, redis_url
):
    """On solo it blocks the event loop; one that computes has the interpreter lock most times."""
    module = load_app(APP)
    running = worker(APP, "-P", pool, "-Q", "long", "-c", "1")
    names = ["first", "second"]
    with sweeping(redis_url):
        results = [
            getattr(module, task).apply_async((name, 3 * VISIBLE), queue="long") for name in names
        ]
        for result in results:
            result.get(timeout=60)
        nothing_in_hand(module.app)
    assert counted(module.app, "begun", names) == [1, 1]
    assert "budgets.redelivered" not in running.log


@pytest.mark.slow
@pytest.mark.parametrize(("pool", "runs"), [("prefork", 1), ("threads", 2)])
def test_c_code_that_keeps_the_interpreter_lock(pool, runs, worker, load_app, redis_url):
    """On prefork that is another process's; elsewhere the thread stands still, and says so."""
    module = load_app(APP)
    running = worker(APP, "-P", pool, "-Q", "long", "-c", "1")
    with sweeping(redis_url):
        # For longer than another worker takes to start.
        result = module.hold.delay("held", 3 * VISIBLE if runs == 1 else 10 * VISIBLE)
        wait_until(lambda: counted(module.app, "begun", ["held"]) == [1], "it runs")
        if runs == 2:
            worker(APP, "-Q", "long", "-c", "1")
        result.get(timeout=60)
        wait_until(lambda: counted(module.app, "ended", ["held"]) == [runs], "ended", timeout=60)
        nothing_in_hand(module.app)
    assert counted(module.app, "begun", ["held"]) == [runs]
    assert "budgets.slot_recovered" not in running.log


@pytest.mark.slow
def test_the_calls_of_a_killed_worker_start_again_soon(worker, load_app):
    """Within the visibility timeout and the time between two looks, 10 s."""
    module = load_app(APP)
    killed = worker(APP, "-Q", "long", "-c", "4")
    names = [str(number) for number in range(4)]
    for name in names:
        module.nap.delay(name, 60)
    killed.wait_active(4)
    worker(APP, "-Q", "long", "-c", "4")
    killed.kill()
    began = time.monotonic()
    wait_until(lambda: counted(module.app, "begun", names) == [2] * 4, "all run again", timeout=60)
    assert time.monotonic() - began < VISIBLE + 15
    module.app.control.purge()
    for request in wait_until(lambda: module.app.control.inspect().active(), "they run").values():
        for call in request:
            module.app.control.revoke(call["id"], terminate=True, signal="SIGKILL")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_worker_that_stood_still_learns_what_was_handed_out_again(
    pool, worker, load_app, redis_url
):
    """Once; and what it says of those calls later does not touch the second delivery."""
    module = load_app(APP)
    stopped = worker(APP, "-P", pool, "-Q", "long", "-c", "1")
    # For longer than another worker takes to start: one that ends as it wakes is acknowledged.
    results = [module.nap.delay(name, 10 * VISIBLE) for name in ("runs", "waits")]
    wait_until(lambda: counted(module.app, "begun", ["runs"]) == [1], "it runs")
    if pool != "solo":
        wait_until(lambda: module.app.backend.client.zcard("unacked_index") > 0, "in hand")
    os.killpg(stopped.pid, signal.SIGSTOP)
    try:
        other = worker(APP, "-Q", "long", "-c", "2")
        with sweeping(redis_url):
            wait_until(
                lambda: counted(module.app, "begun", ["runs", "waits"]) == [2, 1],
                "both run elsewhere", timeout=30,
            )  # fmt: skip
    finally:
        os.killpg(stopped.pid, signal.SIGCONT)
    line = stopped.wait_for_log("budgets.redelivered", results[0].id, timeout=30)
    assert "task=tests.worker.renewed_app.nap lane=long" in line
    assert module.app.backend.client.hlen("unacked") >= 1, "the second delivery is noted"
    for result in results:
        result.get(timeout=60)
    nothing_in_hand(module.app)
    wait_until(lambda: counted(module.app, "ended", ["runs"]) == [2], "both have ended", timeout=30)
    assert stopped.log.count("budgets.redelivered") <= 2
    assert counted(module.app, "begun", ["runs", "waits"]) == [2, 1]
    assert "budgets.redelivered" not in other.log


@pytest.mark.slow
def test_a_worker_that_does_not_renew_is_noticed(worker, load_app, redis_url):
    """In the log and by the check; ours hand out nothing again while it is there."""
    app = load_app(APP).app
    ours = worker(APP, "-Q", "long", "-c", "1")
    kombu = {"CELERY_BUDGETS_REDIS_TRANSPORT": "kombu", "VISIBLE": "3600"}
    plain = worker(APP, "-Q", "long", "-c", "1", env=kombu)
    line = ours.wait_for_log("budgets.not_renewing", plain.name, timeout=30)
    assert ours.name not in line
    (told,) = [line for line in check(app) if plain.name in line]
    assert told.startswith("FAIL"), told
    assert "lane 'long' has a hard time limit of 450 s, not below the visibility timeout" in told
    assert ours.name not in told
    plain.stop()
    ours.wait_for_log("budgets.all_renew", timeout=30)
    assert not [line for line in check(app) if line.startswith("FAIL")]


@pytest.mark.slow
def test_a_keyed_call_whose_key_another_has_taken_is_stopped(worker, load_app, redis_url):
    """After its worker stood still: one run completes, and all callers get its value."""
    module = load_app(APP)
    stopped = worker(APP, "-Q", "long", "-c", "1")
    result = module.nap.apply_async(("keyed", 10 * VISIBLE), idempotency_key="k")
    wait_until(lambda: counted(module.app, "begun", ["keyed"]) == [1], "it runs")
    os.killpg(stopped.pid, signal.SIGSTOP)
    try:
        worker(APP, "-Q", "long", "-c", "1")
        with sweeping(redis_url):
            wait_until(
                lambda: counted(module.app, "begun", ["keyed"]) == [2], "it runs elsewhere",
                timeout=30,
            )  # fmt: skip
    finally:
        os.killpg(stopped.pid, signal.SIGCONT)
    stopped.wait_for_log("budgets.lease_lost", timeout=30)
    assert result.get(timeout=60) == "keyed"
    nothing_in_hand(module.app)
    assert counted(module.app, "ended", ["keyed"]) == [1]


@pytest.mark.slow
def test_a_thousand_calls_of_three_visibility_timeouts(worker, load_app, redis_url):
    """Each runs once; those of a worker that is killed run again, and no others do."""
    module = load_app(APP)
    many = {
        "SLOTS": "500",
        "VISIBLE": "5",
        "CELERY_BUDGETS_GLOBAL_CONCURRENCY": "500",
        "CELERY_BUDGETS_MEMORY_GUARD": "false",
    }
    first, second = (worker(APP, "-P", "gevent", "-Q", "long", env=many) for _ in range(2))
    names = [str(number) for number in range(1000)]
    with sweeping(redis_url, visible=5.0):
        results = [module.nap.delay(name, 15) for name in names]
        wait_until(lambda: counted(module.app, "begun", names) == [1] * 1000, "all run", timeout=60)
        second.kill()
        killed = time.monotonic()
        wait_until(lambda: module.app.backend.client.llen("long") > 0, "come back", timeout=30)
        assert time.monotonic() - killed < 5 + 15
        values_of(results, timeout=120, detail=first.tail)
        assert Counter(counted(module.app, "begun", names)) == {1: 500, 2: 500}, first.tail(400)
        nothing_in_hand(module.app)
    assert counted(module.app, "ended", names) == [1] * 1000
    assert "budgets.redelivered" not in first.log
