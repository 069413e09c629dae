"""The fixtures themselves: what everyone's tests stand on."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from tests.support.forked import WorkerServer
from tests.support.places import ROOT
from tests.support.waiting import wait_until


def test_a_worker_takes_calls_and_stops_warmly(worker, load_app, broker_url):
    """One call goes round, on each broker, and the worker ends with code 0."""
    plain = load_app("tests.worker.plain_app")
    running = worker("tests.worker.plain_app", "-c", "1")
    assert plain.add.delay(2, 3).get(timeout=10) == 5
    assert running.stop() == 0


def test_no_test_sees_another_tests_messages(worker, load_app):
    """The result of a call that an earlier test might have left is not there."""
    plain = load_app("tests.worker.plain_app")
    with plain.app.connection_for_read() as connection:
        assert connection.default_channel.client.dbsize() == 0


def test_a_killed_worker_leaves_no_process(worker, load_app):
    """kill() takes the pool processes along, also in the middle of a call."""
    plain = load_app("tests.worker.plain_app")
    running = worker("tests.worker.plain_app", "-c", "2")
    plain.nap.delay(60)
    running.wait_for_log("Task nap", "received")
    children = running.pool_pids()
    assert len(children) == 2
    running.kill()
    wait_until(lambda: not any(map(_lives, children)), "the pool processes are gone")


def test_a_worker_that_dies_before_it_is_ready_fails_the_test(worker):
    """The message has the end of its log."""
    with pytest.raises(AssertionError, match=r"(?s)ended before.*no_such_module"):
        worker("tests.worker.no_such_module")


def test_waiting_in_vain_says_what_for():
    """The message names the condition, the last value and the details."""
    with pytest.raises(AssertionError, match=r"(?s)not within 0\.01 s: rain; last seen: 0\nsun"):
        wait_until(lambda: 0, "rain", timeout=0.01, detail=lambda: "sun")


def test_the_worker_dies_with_its_parent(worker):
    """The guard ends the worker when nobody holds its pipe any more, as after a SIGKILL."""
    running = worker("tests.worker.plain_app", "-c", "1", fresh=True)
    running.process.stdin.close()
    assert running.wait_exit() == -signal.SIGKILL


def test_a_forked_worker_dies_with_its_parent(tmp_path):
    """The server that has forked it ends it when nobody holds its socket any more."""
    server = WorkerServer()
    command = ["celery", "-b", "memory://", "-A", "tests.worker.plain_app", "worker", "-l", "INFO"]
    running = server.start(command, os.environ | {"PYTHONPATH": str(ROOT)}, tmp_path / "log")
    wait_until(
        lambda: " ready." in (tmp_path / "log").read_text(),
        "it is ready",
        timeout=30,
        detail=(tmp_path / "log").read_text,
    )
    assert running.poll() is None
    server.close()
    wait_until(lambda: not _lives(running.pid), "it is gone")


def test_a_forked_worker_tells_how_it_ended(worker):
    """As a program does: by an exit code, or by a signal."""
    gone = worker("tests.worker.no_such_module", ready=False)
    killed = worker("tests.worker.plain_app", "-c", "1")
    killed.kill()
    assert (gone.wait_exit() > 0, killed.returncode) == (True, -signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
