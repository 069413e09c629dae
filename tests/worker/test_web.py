"""The page with real workers: what it tells is what `celery lanes` tells, and it can act."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_budgets import Budgets
from celery_budgets.cli import lanes
from tests.support.places import ROOT
from tests.support.waiting import wait_until
from tests.unit.web.test_application import Client

APP = "tests.worker.web_app"
XSRF = {
    "HTTP_COOKIE": "celery_lanes_xsrf=abcdefghijklmnopqrstuvwxyz",
    "HTTP_X_LANES_XSRF": "abcdefghijklmnopqrstuvwxyz",
}


@pytest.fixture(scope="module")
def page(module_worker, load_module_app) -> Any:
    """One worker of three lanes, and the page of its app."""
    worker = module_worker(APP, "-Q", "quick,slow,strict")
    module = load_module_app(APP)
    budgets = Budgets.of(module.app)
    client = Client(budgets.wsgi(read_only=False, authorize=lambda _: True, interval=0.2))
    return SimpleNamespace(client=client, module=module, worker=worker, budgets=budgets)


def read(page: Any, path: str) -> Any:
    status, body = page.client(path)
    assert status == 200, body
    return json.loads(body)


def lane_of(page: Any, name: str) -> dict[str, Any]:
    return next(each for each in read(page, "/lanes.json")["summary"] if each["lane"] == name)


def printed(page: Any) -> Any:
    """What `celery lanes status --json` prints."""
    context = CLIContext(page.module.app, no_color=True, workdir=None)
    done = CliRunner().invoke(lanes, ["status", "--json"], obj=context)
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def timeless(document: Any) -> Any:
    """*document* without what changes by itself."""
    passing = {"rss", "rss_peak", "arrivals", "departures", "drain", "oldest", "hour", "backlog"}
    if isinstance(document, dict):
        return {key: timeless(value) for key, value in document.items() if key not in passing}
    return [timeless(value) for value in document] if isinstance(document, list) else document


def test_lanes_json_is_what_status_prints(page):
    """Once all is quiet."""
    for call in [page.module.ask.delay() for _ in range(5)]:
        call.get(timeout=10)
    wait_until(lambda: lane_of(page, "quick")["calls"] == 5, "they are counted")
    assert timeless(read(page, "/lanes.json")) == timeless(printed(page))


def test_a_kill_has_its_stack_and_stands_in_the_history(page):
    """Soon after it, grouped by its place."""
    page.module.hang.delay().get(timeout=10, propagate=False)

    def group() -> Any:
        return next((g for g in read(page, "/kills.json")["groups"] if g["task"] == "hang"), None)

    found = wait_until(group, "the kill", timeout=5, detail=page.worker.tail)
    assert found["outcome"] == "hard_time_limit"
    assert found["last"]["stack"][-1]["function"] == "hang"
    hour = wait_until(lambda: lane_of(page, "strict")["hour"], "a step of 5 s is over", timeout=15)
    assert hour == {"hard_time_limit": 1}


def test_a_running_call_with_its_limits_stack_and_cause(page):
    """Behind the row of its lane."""
    call = page.module.nap.delay(20)
    (running,) = wait_until(lambda: lane_of(page, "slow")["running"], "it runs")
    assert running["task_id"] == call.id
    assert running["soft_time_limit"] == pytest.approx(60, abs=1)
    assert running["hard_time_limit"] == pytest.approx(90, abs=1)
    assert running["rss_peak"] > 0
    (stack,) = read(page, f"/stack.json?task_id={call.id}")
    assert stack["stack"][-1]["function"] == "nap"
    assert read(page, f"/why.json?task_id={call.id}")["cause"] == "running"
    call.revoke(terminate=True)
    wait_until(lambda: not lane_of(page, "slow")["running"], "it has ended")


def test_pause_limit_and_resume(page):
    """By the answers of the worker, and in the news."""

    def post(path: str, **body: Any) -> Any:
        status, answer = page.client(path, "POST", json.dumps(body).encode(), **XSRF)
        assert status == 200, answer
        return json.loads(answer)["done"]

    (done,) = post("/lanes/quick/pause")
    assert done["text"] == "lane quick: paused, 0 running"
    wait_until(lambda: lane_of(page, "quick")["paused"] == 1, "it is paused")
    call = page.module.ask.delay()
    post("/lanes/quick/set", concurrency=3)
    wait_until(lambda: lane_of(page, "quick")["limit"] == 3, "it has a new limit")
    assert not call.ready()
    post("/lanes/quick/resume")
    call.get(timeout=10)
    post("/lanes/quick/set", concurrency=4)
    (done,) = post("/scopes/req-1/inner/cancel")
    assert done["text"] == "scope req-1/inner is cancelled, 0 calls were terminated"


def limit_of(page: Any, title: str) -> Any:
    limits = read(page, "/limits.json")["limits"]
    return next((each for each in limits if each["title"] == title), None)


def test_limits_and_the_release_of_who_holds_one(page):
    """As `celery lanes limits --json` prints them; a call that lives takes its places again."""
    calls = [page.module.serve.delay("ann", 8), page.module.serve.delay("ann", 0)]
    found = wait_until(
        lambda: (one := limit_of(page, "customer [ann]")) and one["waiting"] == 1 and one,
        "one holds it, and one waits", detail=page.worker.tail,
    )  # fmt: skip
    context = CLIContext(page.module.app, no_color=True, workdir=None)
    done = CliRunner().invoke(lanes, ["limits", "--json"], obj=context)
    (there,) = (each for each in json.loads(done.output) if each["key"] == "ann")
    for what in ("name", "in_use", "limit", "rate", "waiting"):
        assert found[what] == there[what]
    (holder,) = (one["name"] for one in found["holders"])
    assert holder == there["holders"][0]["name"]
    body = json.dumps({"holder": holder}).encode()
    assert page.client("/limits/nowhere/release", "POST", body, **XSRF)[0] == 409
    status, answer = page.client("/limits/customer/release", "POST", body, **XSRF)
    assert status == 200
    assert json.loads(answer)["done"][0]["text"] == f"{holder}: released: shelf, customer [ann]"
    calls[1].get(timeout=20)
    calls[0].revoke(terminate=True)
    wait_until(lambda: limit_of(page, "shelf")["in_use"] == 0, "it is free", timeout=40)


def test_the_history_of_two_hours(page):
    """From the worker, in steps of half a minute."""
    history = read(page, "/history.json")
    assert history["step"] == 30
    assert {"quick", "slow", "strict"} <= set(history["lanes"])


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_with_rabbitmq_as_the_broker(worker, load_app, rabbitmq_url):
    """Lanes, kills, limits, and what operators do: as with Redis."""
    running = worker(APP, "-Q", "quick,strict")
    module = load_app(APP)
    client = Client(
        Budgets.of(module.app).wsgi(read_only=False, authorize=lambda _: True, interval=0.2)
    )
    page = SimpleNamespace(client=client, module=module, worker=running)
    serves = module.serve.delay("ann", 3)
    wait_until(lambda: (one := limit_of(page, "shelf")) and one["in_use"] == 1, "it is held")
    module.hang.delay()
    wait_until(lambda: read(page, "/kills.json")["groups"], "the kill", timeout=10)
    status, answer = client("/lanes/quick/pause", "POST", b"{}", **XSRF)
    assert status == 200, answer
    waits = module.ask.delay()
    wait_until(lambda: lane_of(page, "quick")["paused"] == 1, "it is paused")
    wait_until(lambda: lane_of(page, "quick")["backlog"] == 1, "it waits", timeout=20)
    assert client("/lanes/quick/resume", "POST", b"{}", **XSRF)[0] == 200
    for call in (serves, waits):
        call.get(timeout=20)
    wait_until(lambda: lane_of(page, "quick")["calls"] == 2, "they are counted")


def test_the_command_serves_it_until_ctrl_c(page, module_servers):
    """On loopback, by the printed address alone."""
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", APP, "lanes", "web", "--port", "0"],
        cwd=ROOT, env=os.environ | module_servers.environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", process.stdout.readline())
        assert address is not None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(address.group(), timeout=10) as answer:
            assert b"<h1>Lanes" in answer.read()
        host, query = address.group().split("?")
        with opener.open(f"{host}lanes.json?{query}", timeout=10) as answer:
            assert json.loads(answer.read())["workers"]
        with opener.open(f"{host}events?{query}", timeout=10) as stream:
            assert stream.readline() == b"retry: 2000\n"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            opener.open(host, timeout=10)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
        assert process.returncode == 0, said
        assert "Traceback" not in said
    finally:
        process.kill()
        process.wait()


def test_elsewhere_it_needs_a_password(page):
    """Before it listens."""
    context = CLIContext(page.module.app, no_color=True, workdir=None)
    done = CliRunner().invoke(lanes, ["web", "--host", "0.0.0.0"], obj=context)
    assert done.exit_code == 2
    assert "give --auth USER:PASSWORD" in done.output
