"""A Redis that keeps limits, and nothing else, and is gone for a while."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.places import ROOT
from tests.support.servers import Server
from tests.support.waiting import wait_until

APP = "tests.worker.fleet_app"
UNKNOWN = "limits over the fleet unknown: Redis has not answered for "


@pytest.fixture
def limits_server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.end()


def test_lanes_status_tells_that_limits_are_unknown(worker, load_app, servers, limits_server):
    """As long as they are, also while no call asks for them; and its calls run afterwards."""
    environment = {"CELERY_BUDGETS_IDEMPOTENCY_URL": limits_server.url}
    app = load_app(APP, **environment)
    running = worker(APP, "-Q", "free", env=environment)

    def status(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", APP, "lanes", "status", *arguments],
            cwd=ROOT, env=os.environ | servers.environment | environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def alerts():
        (row,) = json.loads(status("--json"))["lanes"]
        return [alert["text"] for alert in row["alerts"] if "limits" in alert["text"]]

    assert app.api.delay("before").get(timeout=20) == "before"
    assert alerts() == []
    limits_server.kill()
    (text,) = wait_until(alerts, "it is told", timeout=20, detail=running.tail)
    assert text.startswith(UNKNOWN)
    waits = app.api.delay("after")
    assert app.free.delay("beside").get(timeout=20) == "beside"
    assert "limits over the" in status()
    assert not waits.ready()
    limits_server.start()
    assert waits.get(timeout=30) == "after"
    assert alerts() == []
