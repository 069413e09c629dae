"""What a worker leaves behind: nothing."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.support.apps import fresh_app
from tests.support.waiting import wait_until

APP = "tests.worker.memory_error_app"
#: Arguments of a worker for each test; all start at once.
WORKERS = {
    "stopped": ("-c", "1"),
    "killed": ("-c", "1"),
    "replacing": ("-c", "1", "--max-tasks-per-child", "2"),
    signal.SIGTERM: ("-c", "2"),
    signal.SIGQUIT: ("-c", "2"),
}


@pytest.fixture(scope="module")
def workers(module_worker, new_servers):
    return {
        name: module_worker(APP, "-Q", "critic", *slots, ready=False, servers=new_servers())
        for name, slots in WORKERS.items()
    }


@pytest.fixture
def joined(workers):
    """``joined(name)`` gives that worker after its first call, and the app on its servers."""
    with ExitStack() as stack:

        def join(name):
            running = workers[name].wait_ready()
            stack.callback(running.retire)
            app = stack.enter_context(fresh_app(APP, running.servers, {}))
            app.pid.delay().get(timeout=30)
            return running, app

        yield join


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


@pytest.mark.slow
def test_a_stopped_worker_takes_its_records_along(joined):
    """The folder in memory is gone after a warm stop."""
    running, _ = joined("stopped")
    folder = folder_of(running)
    assert running.stop() == 0
    assert not folder.exists()


def test_a_worker_that_was_killed_is_tidied_up_after(joined, worker):
    """Its folder is gone when the next worker has started."""
    killed, _ = joined("killed")
    folder = folder_of(killed)
    killed.kill()
    worker(APP, "-Q", "critic", "-c", "1")
    assert not folder.exists()


def test_a_process_that_is_replaced_leaves_no_record(joined):
    """Else a worker that recycles its processes fills the memory file system, file by file."""
    running, app = joined("replacing")
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
def test_no_process_is_left(joined, how):
    """After a warm and after a cold stop."""
    running, app = joined(how)
    # A cold stop in the middle of reading a result never ends (celery.concurrency.asynpool).
    wait_until(lambda: app.budgets.concurrency().lanes["critic"].active == 0, "no call is active")
    pids = running.pool_pids()
    os.kill(running.pid, how)
    running.process.wait(30)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "all are gone")
