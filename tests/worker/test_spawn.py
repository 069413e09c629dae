"""Pool processes that are spawned: they inherit nothing, and find everything they need."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from tests.support.waiting import wait_until
from tests.worker.test_time_limits import APP, calls_of, error_of


@pytest.mark.slow
def test_budgets_hold_in_spawned_processes(worker, load_app):
    """Limits, outcomes and memory of calls, and of one whose process is killed."""
    limits = load_app(APP)
    running = worker(APP, "-Q", "lane", "-c", "2", env={"START_METHOD": "spawn"})
    assert limits.quick.delay("spawned").get(timeout=30) == "spawned", running.tail()
    assert isinstance(error_of(limits.sleeping.delay()), SoftTimeLimitExceeded)
    assert isinstance(error_of(limits.swallowing.delay()), TimeLimitExceeded)
    assert limits.extending.delay(1.5, 1.8).get(timeout=30)[0] == 1.5
    lost = limits.sleeping.apply_async(soft_time_limit=20)
    flight = wait_until(lambda: flying(running, lost.id), "the call has begun", timeout=10)
    os.kill(flight, signal.SIGKILL)
    calls = calls_of(limits, "sleeping", 2)
    assert lost.state == "FAILURE"
    assert dict(calls.outcomes) == {"soft_time_limit": 1, "worker_lost": 1}
    # Its process had written down the memory of the call before it was killed.
    assert calls.rss_peak.count == 2


def flying(running, task_id):
    """Return the pool process that runs the call, as the worker can see it."""
    folder = next(Path("/dev/shm").glob(f"celery-budgets-flights-{running.pid}-*"))
    for path in (path for path in folder.iterdir() if path.name.isdigit()):
        if path.read_bytes().startswith(task_id.encode()):
            return int(path.name)
    return None
