"""The tab *Lanes* in real Flower: by one line of its configuration, under its authentication."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from celery_budgets.child_process import BoundProcess
from tests.support.places import ROOT
from tests.support.programs import free_port
from tests.support.waiting import wait_until

flower = pytest.importorskip("flower")

pytestmark = pytest.mark.slow
APP = "tests.worker.web_app"
ANN = {"Authorization": "Basic " + base64.b64encode(b"ann:secret").decode()}
#: A proxy of the environment is not for loopback.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Flower:
    """A Flower whose configuration is one line."""

    def __init__(self, environment: dict[str, str], directory: Any, *options: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.options = options
        self.log = directory / f"flower-{port}.log"
        (directory / "flowerconfig.py").write_text("import celery_budgets.flower\n")
        command = [
            *(sys.executable, "-m", "celery", "-A", APP, "flower", "--address=127.0.0.1"),
            *(f"--port={port}", f"--conf={directory / 'flowerconfig.py'}", *options),
        ]
        with self.log.open("wb") as output:
            self.process = BoundProcess(
                command, parting=signal.SIGTERM, environment=environment, output=output
            )
        wait_until(self._is_ready, "Flower answers", timeout=30, detail=self.log.read_text)

    def _is_ready(self) -> bool:
        prefix = "/shop" if "--url-prefix=shop" in self.options else ""
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self(f"{prefix}/healthcheck")[0] == 200
        except OSError:
            return False

    def __call__(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, body, sent)
        try:
            with _opener.open(request, timeout=10) as answer:
                self.headers = answer.headers
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()

    def ours(self, **headers: str) -> dict[str, str]:
        """The headers that prove that the page has sent a request."""
        self("/lanes/", **headers)
        cookie = self.headers["Set-Cookie"].partition(";")[0]
        return {**headers, "Cookie": cookie, "X-Lanes-Xsrf": cookie.partition("=")[2]}


@pytest.fixture(scope="module")
def environment(module_worker, module_servers) -> dict[str, str]:
    """Of a Flower of one worker."""
    module_worker(APP, "-Q", "quick,strict", "-P", "threads")
    return os.environ | module_servers.environment | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def guarded(environment, tmp_path_factory) -> Iterator[Flower]:
    """A Flower that wants name and password, below a path."""
    made = Flower(environment, tmp_path_factory.mktemp("flower"), "--basic-auth=ann:secret")
    yield made
    made.process.end(grace=10)


@pytest.fixture(scope="module")
def shown(environment, tmp_path_factory) -> Iterator[Flower]:
    """A Flower that only shows, below a path; before 2.2 without a login, which does the same."""
    directory = tmp_path_factory.mktemp("flower")
    options = ["--url-prefix=shop"]
    if tuple(map(int, flower.__version__.split(".")[:2])) >= (2, 2):
        options += ["--read_only=True", "--basic-auth=ann:secret"]
    made = Flower(environment, directory, *options)
    yield made
    made.process.end(grace=10)


@pytest.mark.parametrize("path", ["/lanes/", "/lanes/app.js", "/lanes/lanes.json", "/lanes/events"])
def test_nothing_without_a_login(guarded, path):
    """As all of Flower."""
    assert guarded(path)[0] == 401
    wrong = {"Authorization": "Basic " + base64.b64encode(b"ann:guess").decode()}
    assert guarded(path, **wrong)[0] == 401


def test_the_tab_and_the_page(guarded):
    """A link on Flower's pages; the page knows the way back."""
    status, text = guarded("/workers", **ANN)
    assert status == 200
    assert '<a class="nav-link" href="/lanes/">Lanes</a>' in text
    status, page = guarded("/lanes/", **ANN)
    assert (status, "<h1>Lanes" in page, "Flower" in page) == (200, True, True)
    assert "default-src 'none'" in guarded.headers["Content-Security-Policy"]
    assert guarded("/lanes", **ANN)[0] == 200  # led on to the page
    assert guarded("/lanes/../urls.py", **ANN)[0] == 404
    status, text = guarded("/lanes/lanes.json", **ANN)
    assert status == 200
    (worker,) = json.loads(text)["workers"]
    assert worker


def test_the_stream(guarded):
    """It begins at once."""
    request = urllib.request.Request(f"{guarded.url}/lanes/events", headers=ANN)
    with _opener.open(request, timeout=10) as stream:
        assert stream.readline() == b"retry: 2000\n"
        assert stream.readline() == b"\n"
        assert stream.readline() == b"event: lanes\n"


def test_a_lane_is_paused_and_resumed(guarded):
    """By who has logged in, from the page alone."""
    assert guarded("/lanes/lanes/quick/pause", b"{}", **ANN)[0] == 403
    evil = {**guarded.ours(**ANN), "Origin": "http://evil.example"}
    assert guarded("/lanes/lanes/quick/pause", b"{}", **evil)[0] == 403
    for verb in ("pause", "resume"):
        status, text = guarded(f"/lanes/lanes/quick/{verb}", b"{}", **guarded.ours(**ANN))
        assert status == 200, text
        assert f"lane quick: {verb}d" in text
    assert "budgets.operator action=pause name='quick' by='basic@127.0.0.1'" in (
        guarded.log.read_text()
    )


def test_with_read_only_nothing_is_changed(shown):
    """Below a path too."""
    ann = ANN if "--basic-auth=ann:secret" in shown.options else {}
    status, text = shown("/shop/workers", **ann)
    assert 'href="/shop/lanes/">Lanes</a>' in text
    shown("/shop/lanes/", **ann)
    cookie = shown.headers["Set-Cookie"].partition(";")[0]
    ours = {**ann, "Cookie": cookie, "X-Lanes-Xsrf": cookie.partition("=")[2]}
    status, text = shown("/shop/lanes/lanes/quick/pause", b"{}", **ours)
    assert (status, text) == (403, "this page only shows, and changes nothing\n")
    assert shown("/shop/lanes/lanes.json", **ann)[0] == 200
