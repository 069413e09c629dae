"""Where a killed call was: real workers, bodies that hang in every way."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError

from celery_budgets.errors import MemoryLimitExceeded
from celery_budgets.execution.stacks.writer import SIGNAL
from tests.support.apps import fresh_app
from tests.support.waiting import wait_until
from tests.support.workers import Workers
from tests.worker.hanging_app import OWN, WAYS
from tests.worker.test_time_limits import each_broker  # noqa: F401  a fixture

APP = "tests.worker.hanging_app"
JSON_LINES = {"CELERY_BUDGETS_JSON_LOGS": "1"}
#: The functions of a traceback, outermost first.
_FUNCTIONS = re.compile(r'^  File ".*", line \d+, in (.*)$', re.MULTILINE)


@pytest.fixture(scope="module")
def hanging(each_broker, tmp_path_factory):  # noqa: F811
    """The app, with a worker of all its lanes."""
    workers = Workers(each_broker, tmp_path_factory.mktemp("workers"))
    with fresh_app(APP, each_broker, {}) as module:
        module.worker = workers(APP, "-c", "4", env=JSON_LINES)
        yield module
        workers.close()


def ended(result, error):
    """Wait for the *error* of a call, and return the traceback that Celery keeps."""
    with pytest.raises(error):
        result.get(timeout=30)
    return result.traceback


def record_of(worker, task_id):
    """Return the record of an ended call."""

    def found():
        for line in worker.log.splitlines():
            if '"budgets.call_ended"' in line and task_id in line:
                return json.loads(line[line.index("{") :])
        return None

    return wait_until(found, f"the record of {task_id}", detail=worker.tail)


@pytest.mark.parametrize("way", WAYS)
def test_a_call_at_its_hard_limit_shows_where_it_hung(hanging, way):
    """Its innermost frame first of all, and nothing of the pool."""
    result = hanging.hang.delay(way)
    traceback = ended(result, TimeLimitExceeded)
    functions = _FUNCTIONS.findall(traceback)
    assert OWN[way] in functions, traceback
    assert "run_body" not in functions
    stack = record_of(hanging.worker, result.id)["stack"]
    file, function = WAYS[way]
    assert (stack[-1]["file"].endswith(file), stack[-1]["function"]) == (True, function), stack
    assert len(stack) <= 30


@pytest.mark.parametrize("way", ["sleep", "lock", "socket", "join", "event_loop", "child"])
def test_a_call_at_its_soft_limit_shows_where_it_was(hanging, way):
    """The traceback is that of its exception; the record has the same frames."""
    result = hanging.give_way.delay(way)
    own = OWN[way] if way != "event_loop" else "in_event_loop"  # where it was raised
    assert own in ended(result, SoftTimeLimitExceeded)
    stack = record_of(hanging.worker, result.id)["stack"]
    assert own in [frame["function"] for frame in stack]
    assert stack[0]["function"] == "give_way"


@pytest.mark.parametrize("way", ["regex", "loop_in_c"])
def test_code_that_no_exception_interrupts_shows_where_it_was_at_its_soft_limit(hanging, way):
    """In the record of the kill that follows."""
    result = hanging.hang.delay(way)
    ended(result, TimeLimitExceeded)
    told = record_of(hanging.worker, result.id)["soft_stack"]
    assert OWN[way] in [frame["function"] for frame in told]


@pytest.mark.parametrize(
    "way", ["sleep", "regex", "loop_in_c", "lock", "socket", "join", "child", "event_loop"]
)
def test_a_call_at_its_memory_limit_shows_where_it_was(hanging, way):
    """Also in C code that keeps the interpreter lock, where the worker is the one that kills."""
    result = hanging.grow_and_hang.delay(way)
    traceback = ended(result, MemoryLimitExceeded)
    assert OWN[way] in _FUNCTIONS.findall(traceback), traceback


def test_a_call_that_goes_on_after_its_soft_limit_shows_both_places(hanging):
    """Where it was told, and where it was ended."""
    result = hanging.clean_up_forever.delay()
    traceback = ended(result, TimeLimitExceeded)
    told, _, died = traceback.partition("It went on, until:")
    assert ("in_sleep" in told, "in_lock" in told) == (True, False), traceback
    assert ("in_sleep" in died, "in_lock" in died) == (False, True), traceback
    record = record_of(hanging.worker, result.id)
    assert record["soft_stack"][-1]["function"] == "in_sleep"
    assert record["stack"][-1]["function"] == "in_lock"


def test_an_error_callback_learns_where_the_call_hung(hanging):
    """As its traceback, and as a note on the exception."""
    result = hanging.hang.apply_async(("lock",), link_error=hanging.note_stack.s())
    ended(result, TimeLimitExceeded)
    client = hanging.app.backend.client
    key = f"told:{result.id}"
    wait_until(lambda: client.llen(key) == 2, "the error callback has run")
    for told in client.lrange(key, 0, -1):
        assert b"in_lock" in told


def test_no_values_leave_the_process(hanging):
    """Neither arguments nor variables."""
    result = hanging.hang_with_secret.delay("hunter2")
    assert "hunter2" not in ended(result, TimeLimitExceeded)
    assert "hunter2" not in str(record_of(hanging.worker, result.id))


def test_the_last_stack_of_a_lost_process_is_shown(hanging):
    """One that was taken before: of its soft limit. Celery stores no traceback of such a call."""
    result = hanging.lose_process_after_soft_limit.delay()
    ended(result, WorkerLostError)
    assert record_of(hanging.worker, result.id)["stack"][-1]["function"] == "in_sleep"


def test_stacks_can_be_turned_off(worker, load_app):
    """The traceback of a kill is then that of the worker, as before."""
    running = worker(APP, "-c", "1", env=JSON_LINES | {"STACKS": "no"})
    module = load_app(APP)
    result = module.hang.delay("sleep")
    assert "in_sleep" not in (ended(result, TimeLimitExceeded) or "")
    assert record_of(running, result.id)["stack"] is None
    for pid in running.pool_pids():
        mask = next(
            line for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("SigCgt")
        )  # fmt: skip
        assert not int(mask.split()[1], 16) >> (SIGNAL - 1) & 1


def test_all_threads_where_the_setting_asks_for_them(worker, load_app):
    """The others follow the one of the body."""
    worker(APP, "-c", "1", env={"STACKS": "all"})
    module = load_app(APP)
    traceback = ended(module.hang.delay("join"), TimeLimitExceeded)
    assert "Another thread of its process:" in traceback, traceback


@pytest.mark.slow
def test_a_call_that_is_slow_for_its_task_is_told_of_once(hanging):
    """With where it is; it runs on to its end."""
    for result in [hanging.often.delay("nothing") for _ in range(100)]:
        result.get(timeout=30)
    result = hanging.often.delay("nap")
    line = hanging.worker.wait_for_log('"budgets.call_slow"', result.id, timeout=30)
    facts = json.loads(line[line.index("{") :])
    assert [frame["function"] for frame in facts["stack"]] == ["often", "in_nap"]
    assert facts["seconds"] > 10
    result.get(timeout=30)
    assert hanging.worker.log.count('"budgets.call_slow"') == 1
