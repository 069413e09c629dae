"""A stop, or a lost connection, while a call is on its way into a process: it runs once."""

from __future__ import annotations

import pytest
from kombu import Connection

from tests.support.marks import first_of
from tests.support.waiting import wait_until

APP = "tests.worker.stopping_app"

early_and_late = pytest.mark.parametrize("task", first_of("safe", "once"))


def left(servers, queue):
    """How many messages the broker has for *queue*, once all channels are closed."""
    with Connection(servers.broker) as connection, connection.channel() as channel:
        try:
            return channel.queue_declare(queue, passive=True).message_count
        except connection.channel_errors:
            return 0  # Redis has no empty lists


@early_and_late
def test_a_stop_waits_for_a_call_that_has_begun(worker, load_app, servers, broker_url, task):
    """Its result is read, its message acknowledged, and its process leaves at once."""
    loaded = load_app(APP)
    running = worker(APP, "-Q", task, "-c", "1", env={"THEN": "stop"})
    result = getattr(loaded, task).delay()
    assert running.wait_exit() == 0
    assert result.get(timeout=1) == "done"
    assert int(loaded.Redis.from_url(servers.backend).get(f"ran:{task}")) == 1
    assert left(servers, task) == 0
    assert "could not ensure all messages were consumed" not in running.log
    assert "succeeded in" in running.log


@early_and_late
def test_a_reconnect_keeps_a_call_that_has_begun(worker, load_app, servers, broker_url, task):
    """Its message comes again, and settles nothing but itself."""
    loaded = load_app(APP)
    running = worker(APP, "-Q", task, "-c", "1", env={"THEN": "reconnect"})
    results = [getattr(loaded, task).delay() for _ in range(2)]
    assert [result.get(timeout=20) for result in results] == ["done", "done"]
    assert "window closes" in running.log
    wait_until(lambda: running.log.count("succeeded in") == 2, "both ends are told")
    assert running.stop() == 0
    assert int(loaded.Redis.from_url(servers.backend).get(f"ran:{task}")) == 2
    assert left(servers, task) == 0
