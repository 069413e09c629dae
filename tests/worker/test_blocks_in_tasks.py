"""Blocks inside of budgeted tasks with real workers: whose limit holds, what is told of both."""

from __future__ import annotations

import pytest
from celery.exceptions import TimeLimitExceeded

from celery_budgets.telemetry import attributes as names
from tests.support.apps import Servers, fresh_app
from tests.support.marks import first_of
from tests.support.places import json_lines
from tests.support.waiting import wait_until
from tests.support.workers import Workers

APP = "tests.worker.blocks_app"
QUEUES = ("-Q", "lane,patient", "-c", "2")


@pytest.fixture(scope="module", params=first_of("prefork", "threads"))
def tools(request, redis_database, tmp_path_factory):
    """The app, and a worker of each pool in turn; its spans are in files."""
    redis = redis_database()
    servers = Servers(broker=redis, backend=redis)
    folder = tmp_path_factory.mktemp("spans")
    workers = Workers(servers, tmp_path_factory.mktemp("workers"))
    with fresh_app(APP, servers, {}) as loaded:
        loaded.pool, loaded.folder = request.param, folder
        loaded.worker = workers(APP, *QUEUES, "-P", request.param, env={"SPANS": str(folder)})
        yield loaded
        workers.close()


def spans_of(tools, task_id):
    """Return the spans of a call and of the block inside of it, once both have ended."""

    def found():
        spans = {
            span["attributes"].get(names.TASK_ID): span for _, span in json_lines(tools.folder)
        }
        both = spans.get(task_id), spans.get(f"{task_id}-in")
        return both if all(both) else None

    return wait_until(found, "both spans have ended", detail=tools.worker.tail)


def test_a_block_has_what_its_task_has_left(tools):
    """Of both limits, whatever its lane would give it."""
    task, block = tools.inside.delay().get(timeout=30)
    assert 0 < block[0] <= task[0] + 0.01
    assert 0 < block[1] <= task[1] + 0.01
    _, shorter = tools.inside.delay(timeout=5).get(timeout=30)
    assert 0 < shorter[0] <= 5


def test_its_span_is_below_that_of_its_task(tools):
    """With the attributes and events of a call."""
    result = tools.inside.delay(tool_name="forecast_stitch")
    result.get(timeout=30)
    task, block = spans_of(tools, result.id)
    assert block["parent_id"] == task["context"]["span_id"]
    assert block["context"]["trace_id"] == task["context"]["trace_id"]
    assert (task["name"], block["name"]) == ("worker_call:patient", "worker_call:critic")
    told = block["attributes"]
    assert told[names.TASK_NAME] == "forecast_stitch"
    assert told[names.INPUT_SIZE] == 1024
    assert told[names.OUTCOME] == "succeeded"
    assert (told[names.LANE_ACTIVE], told[names.LANE_LIMIT]) == (1, 1)
    assert told[names.WORKER] == task["attributes"][names.WORKER]
    assert {names.RSS_BEFORE, names.RSS_PEAK, names.DURATION, names.WAIT} <= set(told)
    assert [event["name"] for event in block["events"]] == [
        names.EVENT_SLOT, names.EVENT_STARTED, names.EVENT_SUCCEEDED, names.EVENT_COMPLETED,
    ]  # fmt: skip


def test_a_block_in_a_coroutine_of_a_task(tools):
    """Has the ceiling too."""
    task, block = tools.inside_async.delay().get(timeout=30)
    assert 0 < block <= task


def test_the_limit_of_a_block_leaves_its_task_alone(tools):
    """Soft and hard: the task goes on, and no process ends."""
    result = tools.block_too_long.delay()
    assert result.get(timeout=30) == "went on", tools.worker.tail()


@pytest.mark.parametrize("how", ["burn", "loop"])
def test_the_soft_limit_of_a_task_arrives_in_its_block(tools, how):
    """Once, although both are due at once."""
    if how == "loop" and tools.pool == "threads":
        pytest.skip("a thread notices in Python code only, and its loop waits in C")
    assert tools.task_too_long.delay(how).get(timeout=30) == "raised 1 time", tools.worker.tail()


def test_the_hard_limit_of_a_task_ends_its_block(tools):
    """Told by the worker, from the record of the task, which the block has not touched."""
    result = tools.stubborn.delay()
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=30)
    line = tools.worker.wait_for_log("budgets.call_ended outcome=hard_time_limit", result.id)
    assert "lane=lane" in line
    assert "rss_peak=unknown" not in line
    assert tools.full.delay().get(timeout=30) == "nested"


def test_its_own_slot_is_not_waited_for(tools):
    """Without an end the task would wait for itself."""
    assert tools.full.delay().get(timeout=30) == "nested"


def test_an_error_goes_through(tools):
    """And fails the task."""
    with pytest.raises(ValueError, match="wrong"):
        tools.failing_inside.delay().get(timeout=30)


def test_where_blocks_are_counted(tools):
    """Among the tasks of a worker that runs them itself, and in every process of its own."""
    tools.inside.delay(tool_name="counted").get(timeout=30)
    counted = tools.budgets.statistics().tasks.get("counted")
    if tools.pool == "threads":
        assert dict(counted.outcomes) == {"succeeded": 1}
    else:
        assert counted is None
    assert tools.local.delay().get(timeout=30)["succeeded"] >= 1
