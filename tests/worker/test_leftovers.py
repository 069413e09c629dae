"""What a worker leaves behind: nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.support import wait_until

APP = "tests.worker.memory_error_app"


def folder_of(running):
    """Return the folder of the flight recorder: where a pool process has its record mapped."""

    def found():
        for pid in running.pool_pids():
            for mapped in psutil.Process(pid).memory_maps():
                path = Path(mapped.path)
                if path.name == str(pid):
                    return path.parent
        return None

    return wait_until(found, "a pool process has its record mapped")


def test_a_stopped_worker_takes_its_records_along(worker, load_app):
    """The folder in memory is gone after a warm stop."""
    app = load_app(APP)
    running = worker(APP, "-Q", "critic", "-c", "1")
    app.pid.delay().get(timeout=30)
    folder = folder_of(running)
    assert running.stop() == 0
    assert not folder.exists()


def test_a_worker_that_was_killed_is_tidied_up_after(worker, load_app):
    """Its folder is gone when the next worker has started."""
    app = load_app(APP)
    killed = worker(APP, "-Q", "critic", "-c", "1")
    app.pid.delay().get(timeout=30)
    folder = folder_of(killed)
    killed.kill()
    worker(APP, "-Q", "critic", "-c", "1")
    assert not folder.exists()


def test_a_process_that_is_replaced_leaves_no_record(worker, load_app):
    """Else a worker that recycles its processes fills the memory file system, file by file."""
    app = load_app(APP)
    running = worker(APP, "-Q", "critic", "-c", "1", "--max-tasks-per-child", "2")
    app.pid.delay().get(timeout=30)
    folder = folder_of(running)
    pids = {app.pid.delay().get(timeout=30) for _ in range(6)}
    assert len(pids) >= 3

    def recorded():
        return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}

    wait_until(
        lambda: recorded() <= set(running.pool_pids()),
        "only living processes have a record",
        detail=lambda: f"{recorded()}, {running.pool_pids()}",
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGQUIT])
def test_no_process_is_left(worker, load_app, how):
    """After a warm and after a cold stop."""
    app = load_app(APP)
    running = worker(APP, "-Q", "critic", "-c", "2")
    app.pid.delay().get(timeout=30)
    pids = running.pool_pids()
    os.kill(running.pid, how)
    running.process.wait(30)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "all are gone")
