"""A pool whose processes take longer to start than Celery waits for those that replace others."""

from __future__ import annotations

import contextlib
import urllib.request

import pytest
from billiard.exceptions import WorkerLostError

from celery_budgets.sending.remote_control import Inspection
from celery_budgets.sending.status.alerts import Alert
from celery_budgets.sending.status.overview import Overview
from tests.support.waiting import wait_until

APP = "tests.worker.slow_start_app"
WHY = "not up within worker_proc_alive_timeout (1 s)"


@pytest.fixture
def slow(tmp_path):
    """The file that makes processes slow while it is there."""
    path = tmp_path / "slow"
    path.touch()
    return path


@pytest.fixture
def running(worker, load_app, slow):
    """A worker with its app; ``start(slots)`` starts it."""

    def start(slots: str, **more: str):
        environment = {"SLOW": str(slow), "CELERY_BUDGETS_METRICS_PORT": "0", **more}
        module = load_app(APP, SLOW=str(slow))
        return module, worker(APP, "-P", "prefork", "-c", slots, env=environment)

    return start


def alerts(module) -> tuple[Alert, ...]:
    answers = Inspection(module.app).ask(timeout=5)
    rows = Overview.of(answers, ["lane"]).rows
    return rows[0].alerts if rows else ()


def metric(running, name: str) -> float:
    url = running.wait_for_log("budgets.metrics_served").partition("url=")[2].split()[0]
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[-1])


def test_a_lane_without_processes_is_critical_until_they_are_back(running, slow):
    """It begins well, is warned about at once, and is dead from the first kill on."""
    module, worker = running("1")
    line = worker.wait_for_log("budgets.slow_start", "worker_proc_alive_timeout=1 s")
    assert 1.4 <= float(line.partition("seconds=")[2].split()[0]) < 10
    first = module.pid.delay().get(timeout=20)
    wait_until(lambda: not alerts(module), "all is well", detail=worker.tail)
    assert metric(worker, 'celery_budgets_pool_processes{state="up"}') == 1

    with contextlib.suppress(WorkerLostError):
        module.die.delay().get(timeout=20)
    dead = Alert("critical", f"no pool process takes calls: {WHY}")
    wait_until(lambda: dead in alerts(module), "it is told", timeout=20, detail=worker.tail)
    worker.wait_for_log("budgets.pool_processes_missing missing=1 of=1", "raise")
    assert metric(worker, 'celery_budgets_pool_processes{state="up"}') == 0
    assert metric(worker, 'celery_budgets_pool_processes{state="missing"}') == 1
    wait_until(lambda: metric(worker, "celery_budgets_pool_process_starts_total") >= 3, "again")

    slow.unlink()
    assert module.pid.delay().get(timeout=20) != first
    wait_until(lambda: dead not in alerts(module), "it is over", detail=worker.tail)
    worker.wait_for_log("budgets.pool_processes_back up=1 of=1")


@pytest.mark.slow
def test_one_process_of_several_that_stays_away_is_a_warning(running):
    """The others take the calls."""
    module, worker = running("2")
    module.pid.delay().get(timeout=20)
    with contextlib.suppress(WorkerLostError):
        module.die.delay().get(timeout=20)
    missing = Alert("warning", f"1 of 2 pool processes missing: {WHY}")
    wait_until(lambda: missing in alerts(module), "it is told", timeout=20, detail=worker.tail)
    assert module.pid.delay().get(timeout=20)


def test_processes_that_start_in_time_are_not_told_of(running, slow):
    """Not when they are replaced either."""
    slow.unlink()
    module, worker = running("1", ALIVE="30")
    with contextlib.suppress(WorkerLostError):
        module.die.delay().get(timeout=20)
    assert module.pid.delay().get(timeout=20)
    assert not alerts(module)
    for event in ("slow_start", "pool_processes_missing"):
        assert f"budgets.{event}" not in worker.log
