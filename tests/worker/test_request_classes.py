"""A request class of the program's own: its methods run, and limits, slot and outcome hold."""

from __future__ import annotations

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError

from tests.support.marks import first_of
from tests.support.waiting import wait_until

APP = "tests.worker.classes_app"
TASKS = ["kind", "by_address", "inherited", "unkind", "derived", "none"]
POOLS = ["prefork", "threads", "gevent", "solo"]
#: By what a body does: its outcome, what the caller gets, and the pools on which it can be seen.
ENDS = {
    "return": ("succeeded", None, POOLS),
    "fail": ("failed", ValueError, POOLS),
    "soft": ("soft_time_limit", SoftTimeLimitExceeded, POOLS),
    "hard": ("hard_time_limit", TimeLimitExceeded, ["prefork", "threads"]),
    "die": ("worker_lost", WorkerLostError, ["prefork"]),
}


@pytest.fixture(scope="module", params=first_of(*POOLS))
def pool(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(load_module_app):
    return load_module_app(APP)


@pytest.fixture(scope="module")
def running(pool, module_worker, loaded):
    """A worker of the lane, and its app."""
    worker = module_worker(APP, "-Q", "lane", "-P", pool)
    yield worker, loaded
    worker.stop()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("task", TASKS)
def test_a_request_class_and_a_budget(running, pool, task, end):
    """One slot: a call that kept it would keep the next test's from running."""
    worker, module = running
    outcome, error, pools = ENDS[end]
    if pool not in pools:
        pytest.skip(f"cannot occur on {pool}")
    result = module.app.tasks[task].delay(end)
    if error is None:
        assert result.get(timeout=15) == end
    else:
        with pytest.raises(error):
            result.get(timeout=15)
    worker.wait_for_log(f"task_id={result.id}", f"outcome={outcome}")
    if task in ("kind", "by_address", "inherited"):
        heard = {"return": "accepted", "fail": "failed", "soft": "failed", "hard": "hard"}
        what = heard.get(end, "accepted").encode()
        redis = module.app.backend.client
        wait_until(
            lambda: what in redis.lrange(f"told:{result.id}", 0, -1), "theirs is called",
            detail=worker.tail,
        )  # fmt: skip


def test_nothing_is_left_running(running):
    """Every slot has come back, and the worker says so."""
    _, module = running
    wait_until(
        lambda: [lane.active for lane in module.budgets.concurrency().lanes.values()] == [0],
        "no call is counted", timeout=15,
    )  # fmt: skip
