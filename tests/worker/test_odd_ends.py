"""A call that ends always settles: outcome, result, slot. Whatever its code does on the way."""

from __future__ import annotations

import re
import traceback
from contextlib import ExitStack
from functools import cache

import celery
import pytest

from tests.support.apps import fresh_app
from tests.support.marks import first_of
from tests.support.waiting import wait_until
from tests.worker import odd_ends_app

APP = "tests.worker.odd_ends_app"
SLOTS = {"prefork": ("-c", "1"), "threads": ("-c", "1"), "gevent": ("-c", "1"), "solo": ()}
EACH_POOL = pytest.mark.parametrize("pool", first_of(*SLOTS))
#: By what leaves a body: the outcome of its call, the same on every pool.
FAILED = [
    "unspeakable", "no_text", "no_repr", "no_words", "no_reduce", "bad_reduce",
    "no_eq", "no_truth", "no_args", "nameless", "unpicklable", "group", "stop_iteration",
]  # fmt: skip
OUTCOMES = {
    **dict.fromkeys(FAILED, "failed"),
    "odd_ignore": "succeeded",
    "odd_reject": "rejected",
    "memory_error": "memory_limit",
    # What is no Exception fails its call; what ends a process is told as its loss.
    **dict.fromkeys(["generator_exit", "own_base", "unspeakable_base", "cancelled"], "failed"),
    **dict.fromkeys(["exit", "exit_text", "sys_exit", "interrupt", "exits_in_str"], "worker_lost"),
}  # fmt: skip


def prints(how):
    """Whether this Python prints its traceback: where it does not, a process of Celery's ends."""
    try:
        traceback.TracebackException.from_exception(odd_ends_app.ERRORS[how]())
    except Exception:
        return False
    return True


#: A process of Celery's cannot go on where it cannot print; from 3.14.10 no_truth can be printed.
ENDS_A_PROCESS = {how for how in ("no_truth", "nameless") if not prints(how)}
#: Ends without a result: Celery stores none for an Ignore.
SILENT = {"odd_ignore"}
if celery.VERSION[:2] < (5, 7):
    SILENT.add("odd_reject")  # nor for a Reject before 5.7


@pytest.fixture(scope="module")
def workers(module_worker, new_servers):
    """``workers(pool)`` is the worker of one slot of that pool."""
    return cache(
        lambda pool: module_worker(
            APP, "-Q", "narrow", "-P", pool, *SLOTS[pool], servers=new_servers()
        )
    )


@pytest.fixture
def joined(workers):
    """``joined(pool)`` gives that worker, ready, and the app connected to its servers."""
    with ExitStack() as stack:

        def join(pool):
            running = workers(pool)
            return running, stack.enter_context(fresh_app(APP, running.servers, {}))

        yield join


def outcome_of(running, task_id):
    """Return the outcome that the worker has logged for a call."""
    line = running.wait_for_log("budgets.call_ended", f"task_id={task_id}", timeout=20)
    return re.search(r"outcome=(\w+)", line)[1]


def stored_state(app, task_id):
    """Return the state in the result backend, without making the exception again."""
    backend = app.app.backend
    stored = backend.get(backend.get_key_for_task(task_id))
    return stored and backend.decode(stored)["status"]


def assert_serves(running, app):
    """The only slot is free, and the next call runs in it."""
    assert app.ping.delay().get(timeout=20) == "pong", running.tail()
    wait_until(
        lambda: app.budgets.concurrency().lanes["narrow"].active == 0, "no call is active",
        detail=running.tail,
    )  # fmt: skip
    assert running.returncode is None


@EACH_POOL
@pytest.mark.parametrize("how", OUTCOMES)
def test_whatever_leaves_a_body_settles_its_call(joined, pool, how):
    running, app = joined(pool)
    result = app.misbehave.delay(how)
    lost = pool == "prefork" and how in ENDS_A_PROCESS
    assert outcome_of(running, result.id) == ("worker_lost" if lost else OUTCOMES[how])
    if how not in SILENT:
        wait_until(
            lambda: stored_state(app, result.id) == "FAILURE", "its result is there",
            timeout=10, detail=running.tail,
        )  # fmt: skip
    assert_serves(running, app)


@EACH_POOL
@pytest.mark.parametrize("task", ["odd_result", "odd_result_ignored"])
def test_whatever_a_body_returns_settles_its_call(joined, pool, task):
    running, app = joined(pool)
    result = getattr(app, task).delay()
    expected = "succeeded" if task.endswith("ignored") else "failed"
    assert outcome_of(running, result.id) == expected
    assert_serves(running, app)


#: Where code of the program's runs on the way to a call's end, and how the body ended.
WHERE = {
    "on_failure": "fail", "on_success": "succeed", "after_return": "succeed",
    "task_failure": "fail", "task_success": "succeed", "task_postrun": "succeed",
    "task_prerun": "succeed",
}  # fmt: skip


@EACH_POOL
@pytest.mark.parametrize("how", ["exception", "base", "exit", "memory", "reject"])
def test_whatever_a_handler_raises_settles_its_call(joined, pool, how):
    """Handlers and receivers; in the call's process, and in the worker where that was killed."""
    running, app = joined(pool)
    results = [app.hooks.delay(where, how, then) for where, then in WHERE.items()]
    if pool == "prefork":
        results += [app.hooks.delay(where, how, "die") for where in ("on_failure", "task_failure")]
    for result in results:
        outcome_of(running, result.id)
    assert_serves(running, app)


def test_the_table_names_every_error():
    assert {*odd_ends_app.ERRORS, "sys_exit", "cancelled"} == set(OUTCOMES)
