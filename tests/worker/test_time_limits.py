"""Time limits with real workers: what each pool enforces, when, and what the caller gets."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from celery_budgets.execution.limits import greenlet_interrupt, interrupts, solo_interrupt
from tests.support.apps import Servers, fresh_app
from tests.support.marks import ON_RABBITMQ, first_of
from tests.support.waiting import wait_until
from tests.support.workers import RunningWorker, Workers
from tests.worker.limits_app import HARD, LONG, SOFT

APP = "tests.worker.limits_app"
#: How late a limit may be, seconds.
SOFT_LATE, HARD_LATE = 0.3, 0.5
#: What the noise of a small machine may add to a call that runs to its own end, seconds.
SLACK = 3.0


@dataclass
class Expected:
    """How a call ends: outcome, error for the caller, and between which seconds."""

    outcome: str
    error: type[Exception] | None
    after: float
    before: float


AT_SOFT = Expected("soft_time_limit", SoftTimeLimitExceeded, SOFT, SOFT + SOFT_LATE)
AT_HARD = Expected("hard_time_limit", TimeLimitExceeded, HARD, HARD + HARD_LATE)
# What cannot be interrupted is over its limit when it comes back at last.
AT_ITS_END = Expected("hard_time_limit", TimeLimitExceeded, HARD, 2 * LONG + SLACK)

WHAT_HAPPENS = {
    "prefork": {
        "sleeping": AT_SOFT,
        "busy": AT_SOFT,
        "swallowing": AT_HARD,
        "in_c_code": AT_HARD,  # signals are handled between bytecodes; the kill is not
    },
    "threads": {
        "sleeping": AT_HARD,  # a sleeping thread notices its exception when it wakes
        "busy": AT_SOFT,
        "swallowing": AT_HARD,
        "in_c_code": AT_HARD,
    },
    "gevent": {
        "sleeping": AT_SOFT,
        "busy": AT_ITS_END,  # nothing else runs in the process while it does not yield
        "swallowing": AT_ITS_END,
        "in_c_code": AT_ITS_END,
    },
    "solo": {
        "sleeping": AT_SOFT,
        "busy": AT_SOFT,
        "swallowing": AT_HARD,
        "in_c_code": AT_ITS_END,  # the worker itself would have to be killed
    },
}
ENFORCES = {
    "prefork": interrupts.ProcessInterrupt,
    "threads": interrupts.ThreadInterrupt,
    "gevent": greenlet_interrupt.GreenletInterrupt,
    "solo": solo_interrupt.MainThreadInterrupt,
}
KINDS = ("sleeping", "busy", "swallowing", "in_c_code")
BROKERS = ("redis", pytest.param("rabbitmq", marks=ON_RABBITMQ))


def calls_of(limits, task_name, count=1):
    """Return the statistics of a task once *count* of its calls have ended."""

    def ended():
        calls = limits.budgets.statistics().tasks.get(f"{APP}.{task_name}")
        return calls if calls is not None and calls.total >= count else None

    return wait_until(ended, f"{count} calls of {task_name} have ended", timeout=20)


def error_of(result, timeout=30):
    """Return the error that the caller of *result* gets, or ``None``."""
    try:
        result.get(timeout=timeout)
    except (SoftTimeLimitExceeded, TimeLimitExceeded) as exc:
        return exc
    return None


@dataclass
class Running:
    """A worker of one pool on one broker, and the app to call it with."""

    pool: str
    worker: RunningWorker
    limits: ModuleType


@pytest.fixture(scope="module", params=BROKERS)
def each_broker(request, redis_database):
    """Both servers of a module, on each broker in turn."""
    redis = redis_database()
    if request.param == "redis":
        return Servers(broker=redis, backend=redis)
    return Servers(broker=request.getfixturevalue("rabbitmq_server"), backend=redis)


@pytest.fixture(scope="module", params=first_of(*WHAT_HAPPENS))
def running(request, each_broker, tmp_path_factory):
    """A worker of each pool in turn."""
    workers = Workers(each_broker, tmp_path_factory.mktemp("workers"))
    slots = "1" if request.param == "solo" else "2"
    with fresh_app(APP, each_broker, {}) as limits:
        worker = workers(APP, "-Q", "lane", "-P", request.param, "-c", slots)
        yield Running(request.param, worker, limits)
        workers.close()


@pytest.mark.parametrize("kind", KINDS)
def test_what_each_pool_enforces(running, kind):
    """An overrunning call ends as the table says, in time, once, and the worker goes on."""
    expected = WHAT_HAPPENS[running.pool][kind]
    error = error_of(getattr(running.limits, kind).delay())
    assert type(error) is expected.error, running.worker.tail()
    calls = calls_of(running.limits, kind)
    assert dict(calls.outcomes) == {expected.outcome: 1}, running.worker.tail()
    assert calls.soft_limit_exceeded == 1
    # Seconds since the worker started the clock, which is that of the limit.
    assert expected.after - 0.05 <= calls.duration.maximum <= expected.before
    assert running.limits.quick.delay("next").get(timeout=20) == "next"


def test_the_worker_says_at_its_start_what_its_pool_enforces(running):
    """One line names what holds for soft limit, hard limit and memory."""
    line = running.worker.wait_for_log("budgets.worker_started", f"pool={running.pool}")
    for what, phrase in ENFORCES[running.pool].enforces.items():
        assert f"{what}={phrase!r}" in line
