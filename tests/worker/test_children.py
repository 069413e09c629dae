"""The processes that a call starts: ended with a call that is killed, and counted to it."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil
import pytest
from celery.exceptions import TimeLimitExceeded, WorkerLostError

from celery_budgets import MemoryLimitExceeded
from celery_budgets.units import MIB
from tests.support.marks import first_of
from tests.support.waiting import values_of, wait_until

APP = "tests.worker.children_app"
WAYS = ("subprocess", "session", "shell", "deaf", "fork", "multiprocessing", "daemon")


@pytest.fixture(scope="module", params=first_of("fork", "spawn"))
def running(request, new_servers, tmp_path_factory):
    """A worker of both lanes, whose processes are forked, and one that spawns them."""
    from tests.support.workers import Workers

    servers = new_servers()
    workers = Workers(servers, tmp_path_factory.mktemp("workers"))
    environment = {"START_METHOD": request.param}
    running = workers(APP, "-Q", "lane,leaving", "-c", "3", env=environment)
    running.servers = servers
    yield running
    workers.leave()


@pytest.fixture
def children(running):
    """The app, connected to that worker; what its calls have left is killed at the end."""
    from tests.support.apps import fresh_app

    with fresh_app(APP, running.servers, {}) as app:
        yield app
        for key in app.redis().scan_iter("children:*"):
            for pid in pids_of(app, key.decode().removeprefix("children:")):
                if lives(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            app.redis().delete(key)


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def pids_of(app, key):
    return [int(pid) for pid in app.redis().lrange(f"children:{key}", 0, -1)]


def living(app, key):
    return [pid for pid in pids_of(app, key) if lives(pid)]


def begun(app, result):
    """Wait until a call has started its processes, and return the process of the call."""
    return int(
        wait_until(lambda: app.redis().get(f"process:{result.id}"), "they are there", timeout=30)
    )


def all_end(app, result, count):
    wait_until(lambda: not living(app, result.id), "all have ended", timeout=8)
    assert len(pids_of(app, result.id)) == count


def test_children_end_with_a_call_at_its_hard_limit(running, children):
    """However they were started; the worker goes on."""
    result = children.starting.apply_async((WAYS,), soft_time_limit=5, time_limit=6)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=30)
    all_end(children, result, len(WAYS) + 1)
    assert children.pooling.delay().get(timeout=30) == [1, 2, 3], running.tail()
    running.wait_for_log("budgets.children_ended", result.id)


def test_pools_of_multiprocessing_end(running, children):
    """With billiard's handler of SIGTERM one in some did not: it missed the signal."""
    results = [children.pooling.delay() for _ in range(100)]
    assert values_of(results, timeout=50, detail=running.tail) == [[1, 2, 3]] * 100


@pytest.mark.parametrize("way", WAYS)
def test_children_end_with_a_call_that_is_revoked(running, children, way):
    """In each way alone, since one that is forked keeps the pipes of its parent open."""
    result = children.starting.delay([way])
    begun(children, result)
    children.app.control.revoke(result.id, terminate=True)
    wait_until(lambda: not living(children, result.id), "all have ended", timeout=8)


@pytest.mark.parametrize("then", ["die", "exit"])
def test_children_end_with_a_lost_process(running, children, then):
    """They have no parent any more when the worker hears of it, and were seen before."""
    result = children.starting.apply_async((["subprocess", "deaf", "daemon"], then))
    with pytest.raises(WorkerLostError):
        result.get(timeout=30)
    all_end(children, result, 3)


@pytest.mark.parametrize("then", ["end", "fail"])
def test_children_of_a_call_that_ended_itself_are_left(running, children, then):
    """Also by the kill of a later call in the same process."""
    first = children.starting.delay(["subprocess"], then)
    first.get(timeout=30, propagate=False)
    (pid,) = pids_of(children, first.id)
    process = begun(children, first)
    for _ in range(20):
        second = children.starting.delay(["subprocess"])
        if begun(children, second) == process:
            break
        children.app.control.revoke(second.id, terminate=True, signal="SIGKILL")
    children.app.control.revoke(second.id, terminate=True, signal="SIGKILL")
    wait_until(lambda: not living(children, second.id), "the later ones have ended", timeout=8)
    assert lives(pid)


def test_children_are_left_where_the_budget_says_so(running, children):
    """By lane, by task, and for a task without a budget."""
    calls = [
        (children.leaving, (["subprocess"],)),
        (children.leaving_task, (["subprocess"],)),
    ]
    for task, args in calls:
        result = task.apply_async(args, soft_time_limit=2.5, time_limit=3)
        with pytest.raises(Exception, match=r"(?i)limit"):
            result.get(timeout=30)
        assert living(children, result.id)
    result = children.plain.apply_async((["subprocess"], "plain"), time_limit=3, queue="lane")
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=30)
    assert living(children, "plain")


def test_the_memory_of_children_is_counted(running, children):
    """It stands in the peak of the call, and the warning is logged."""
    # With its process above the warning, 156 MiB, on Celery 5.5 too, and below the limit.
    result = children.taking.delay(130 * MIB)
    assert result.get(timeout=30) == "done"
    running.wait_for_log("budgets.memory_warning", result.id)
    calls = wait_until(
        lambda: children.budgets.statistics().tasks.get(f"{APP}.taking"), "it has ended"
    )
    assert calls.rss_peak.total > 150 * MIB


def test_a_call_is_killed_for_the_memory_of_its_children(running, children):
    """And they are, too."""
    result = children.taking.delay(200 * MIB, 2, 20)
    began = time.monotonic()
    with pytest.raises(MemoryLimitExceeded):
        result.get(timeout=30)
    assert time.monotonic() - began < 10
    all_end(children, result, 2)


def test_pages_that_forked_children_share_count_once(running, children):
    """Six processes that share 100 MiB are not 600."""
    assert children.sharing.delay(100 * MIB, 6).get(timeout=30) == 100
