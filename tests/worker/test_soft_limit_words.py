"""What a soft time limit says of itself: to the body, to the caller, to the log; on each pool."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from types import ModuleType

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from tests.support.apps import fresh_app
from tests.support.marks import first_of
from tests.support.workers import RunningWorker, Workers
from tests.worker.soft_limit_app import HARD, SOFT

APP = "tests.worker.soft_limit_app"


@dataclass
class Running:
    pool: str
    worker: RunningWorker
    app: ModuleType


@pytest.fixture(scope="module", params=first_of("prefork", "threads", "gevent", "solo"))
def running(request, new_servers, tmp_path_factory):
    """A worker of each pool in turn, and the app to call it with."""
    servers = new_servers()
    workers = Workers(servers, tmp_path_factory.mktemp("workers"))
    with fresh_app(APP, servers, {}) as app:
        yield Running(request.param, workers(APP, "-P", request.param, "-c", "1"), app)
        workers.close()


def test_the_body_is_told_its_limit(running):
    """In seconds, as Celery's own does it on prefork."""
    assert running.app.caught.delay().get(timeout=20) == [SOFT]


@pytest.mark.parametrize("name", ["raised", "stubborn"])
def test_the_caller_is_told_the_limit(running, name):
    """Of the soft one, and of the hard one."""
    error, seconds = {
        "raised": (SoftTimeLimitExceeded, SOFT),
        "stubborn": (TimeLimitExceeded, HARD),
    }[name]
    with pytest.raises(error) as caught:
        getattr(running.app, name).delay().get(timeout=20)
    assert caught.value.args == (seconds,)


@pytest.mark.parametrize("name", ["retried", "retried_by_itself"])
def test_a_call_that_is_retried_after_its_soft_limit_is_no_warning(running, name):
    """As the documentation says: INFO where it is retried; it went over its limit all the same."""
    call = getattr(running.app, name).delay()
    assert call.get(timeout=20) == 1
    line = running.worker.wait_for_log("budgets.call_ended outcome=retried", f"task_id={call.id}")
    assert "INFO/" in line
    assert "soft_limit_exceeded=true" in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"time_limit": 0.3}, [0.2, 0.3]),
        ({"time_limit": 0.4}, [0.266667, 0.4]),
        ({"soft_time_limit": 1.1}, [1.1, 1.65]),
        ({"soft_time_limit": 2.3}, [2.3, 3.45]),
        ({}, [SOFT, HARD]),
    ],
    ids=str,
)
def test_a_limit_that_follows_another_has_no_noise(running, options, expected):
    """1.1 * 1.5 is 1.6500000000000001 to a computer, and 1.65 to everybody else."""
    assert running.app.limits.apply_async(**options).get(timeout=20) == expected


def test_the_second_line_says_the_same(running):
    """Here the worker's own timer is not there to send the soft signal."""
    if running.pool != "prefork":
        pytest.skip("on this pool there is one line only")
    # Long enough for the worker to tell in between that it runs.
    call = running.app.caught.apply_async(soft_time_limit=2.5)
    running.worker.wait_active(1)
    os.kill(running.worker.pid, signal.SIGSTOP)
    try:
        (child,) = running.worker.pool_pids()
        # The result is stored by the process itself.
        assert call.get(timeout=20) == [2.5]
    finally:
        os.kill(running.worker.pid, signal.SIGCONT)
    assert child in running.worker.pool_pids()
