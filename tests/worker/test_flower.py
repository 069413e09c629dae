"""Flower as it is, with real workers of three lanes, looked at through a real browser.

Screenshots of what it shows are left in ``build/screenshots``.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import VERSION

from celery_budgets.child_process import BoundProcess
from tests.support.apps import Servers
from tests.support.places import ROOT
from tests.support.programs import fetch, free_port, program
from tests.support.waiting import wait_until
from tests.worker.metrics_app import CLOSED

webdriver = pytest.importorskip("selenium.webdriver")
pytest.importorskip("flower")

APP = "tests.worker.metrics_app"
SCREENSHOTS = ROOT / "build" / "screenshots"
#: The environment of each lane's worker, over that of the test.
LANES = {"closed": CLOSED, "quick": {}, "slow": {}}
#: Calls of each task, the state in which they end, and what the page of each says of it.
CALLS = {
    "succeed": (5, "SUCCESS", ""),
    "fail": (2, "FAILURE", "ValueError('as it was asked to')"),
    "heed_soft_limit": (1, "FAILURE", "SoftTimeLimitExceeded("),
    "ignore_soft_limit": (1, "FAILURE", "TimeLimitExceeded(0.75"),
    "turned_away": (1, "FAILURE", "RejectedByBudget('max_worker_rss', 'closed')"),
}
if VERSION >= (5, 7):  # before, Celery tells nobody how such a call ends
    CALLS["reject"] = (1, "FAILURE", "as it was asked to")


class Flower:
    """A running Flower that asks workers and hears their events."""

    def __init__(self, servers: Servers, directory: Any) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log_path = directory / "flower.log"
        address, port = self.url.removeprefix("http://").split(":")
        command = [
            *(sys.executable, "-m", "celery", "-A", APP, "flower"),
            *(f"--address={address}", f"--port={port}"),
        ]
        environment = environment_of(servers)
        with self.log_path.open("wb") as output:
            self.process = BoundProcess(
                command, parting=signal.SIGTERM, environment=environment, output=output
            )
        wait_until(self._is_ready, "Flower answers", timeout=30, detail=self.log)

    def _is_ready(self) -> bool:
        try:
            return fetch(f"{self.url}/healthcheck") == "OK"
        except OSError:
            return False

    def log(self) -> str:
        return self.log_path.read_text()[-3000:]

    def events(self, task: str) -> dict[str, int]:
        """The events of *task* that Flower has counted, by type."""
        counted: dict[str, int] = {}
        for line in fetch(f"{self.url}/metrics").splitlines():
            if line.startswith("flower_events_total{") and f'.{task}"' in line:
                kind = re.search(r'type="([\w-]+)"', line)[1]
                counted[kind] = counted.get(kind, 0) + round(float(line.rpartition(" ")[2]))
        return counted


def environment_of(servers: Servers) -> dict[str, str]:
    return os.environ | servers.environment | {"PYTHONPATH": str(ROOT)}


class Browser:
    """A headless Chromium, driven without anything being downloaded."""

    def __init__(self, profile: Any) -> None:
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = program("chromium")
        for flag in (
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--no-proxy-server", "--window-size=1400,1000", f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options=options, service=Service(program("chromedriver")))

    def open(self, url: str) -> None:
        self.driver.get(url)

    def find(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return " ".join(element.text for element in self.find(selector))

    def opacity(self, selector: str) -> float:
        (element,) = self.find(selector)
        return float(element.value_of_css_property("opacity"))

    def click(self, selector: str) -> None:
        (element,) = self.find(selector)
        element.click()

    def photograph(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


@pytest.fixture(scope="module")
def flower(module_servers, module_worker, load_module_app, tmp_path_factory) -> Iterator[Any]:
    """Flower, three workers named after their lanes, and calls that all have ended."""
    for name in ("chromium", "chromedriver"):
        program(name)
    server = Flower(module_servers, tmp_path_factory.mktemp("flower"))
    try:
        for lane, environment in LANES.items():
            arguments = ("-Q", lane, "-n", f"{lane}@%h", "-E")
            worker = module_worker(APP, *arguments, ready=False, env=environment)
            worker.wait_for_log(f"{lane}@", "ready.", timeout=30)
            if environment is CLOSED:
                worker.wait_for_log("budgets.gate_closed")
        module = load_module_app(APP)
        ids = {task: make_calls(module, task, count) for task, (count, *_) in CALLS.items()}
        yield SimpleNamespace(server=server, ids=ids, url=server.url)
    finally:
        server.process.end(grace=10)


def make_calls(module: Any, task: str, count: int) -> list[str]:
    results = [getattr(module, task).delay() for _ in range(count)]
    for result in results:
        result.get(timeout=20, propagate=False)
    return [result.id for result in results]


@pytest.fixture(scope="module")
def browser(flower, tmp_path_factory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.driver.quit()


def test_workers_are_named_by_lane(flower, browser):
    """All are online."""
    browser.open(f"{flower.url}/workers")
    wait_until(
        lambda: browser.text("#workers-online") == str(len(LANES)),
        "all workers are online",
        timeout=20,
        detail=lambda: browser.text("body"),
    )
    names = browser.text("#workers-table td:first-child")
    assert [name.partition("@")[0] for name in sorted(names.split())] == list(LANES)
    browser.photograph("flower-workers")


def test_the_workers_page_shows_the_lane_and_its_budget(flower, browser):
    """On the tab "Other", where Flower puts what it does not know."""
    browser.open(f"{flower.url}/workers")
    wait_until(lambda: browser.find("#workers-table td a"), "links to the workers", timeout=20)
    link = next(a for a in browser.find("#workers-table td a") if a.text.startswith("slow@"))
    link.click()
    wait_until(lambda: browser.find("#worker-tab-other"), "the tab", timeout=20)
    browser.click("#worker-tab-other")
    wait_until(
        lambda: browser.find("#tab-other.show") and browser.opacity("#tab-other") == 1,
        "the tab has faded in",
    )
    shown = browser.text("#tab-other")
    browser.photograph("flower-worker-other")
    for expected in (
        "budgets", "'slow'", "'concurrency': 1", "'soft_time_limit': 0.5",
        "'hard_time_limit': 0.75", "'pool': 'prefork'", "'gate': 'open'", "'hard_time_limit': 1",
    ):  # fmt: skip
        assert expected in shown


@pytest.mark.parametrize("task", CALLS)
def test_the_state_of_a_call_does_not_lie(flower, browser, task):
    """On the page of the call; a rejected one is not STARTED for ever."""
    _, wanted, reason = CALLS[task]
    for task_id in flower.ids[task]:
        browser.open(f"{flower.url}/task/{task_id}")
        wait_until(
            lambda: wanted in browser.text("body"),
            f"{task} is {wanted}",
            detail=lambda: browser.text("body"),
        )
        assert "STARTED" not in browser.text("body")
        assert reason in browser.text("body")
    browser.photograph(f"flower-task-{task}")


def test_the_page_of_a_killed_call_shows_where_it_hung(flower, browser):
    """As its traceback: the body, and nothing of the pool."""
    (task_id,) = flower.ids["ignore_soft_limit"]
    browser.open(f"{flower.url}/task/{task_id}")
    wait_until(
        lambda: "in ignore_soft_limit" in browser.text("body"),
        "the page shows the function of the body",
        detail=lambda: browser.text("body"),
    )
    shown = browser.text("body")
    assert "time.sleep(5)" in shown
    assert "billiard/pool.py" not in shown
    browser.photograph("flower-task-killed")


def test_the_list_of_calls(flower, browser):
    """Every call once."""
    browser.open(f"{flower.url}/tasks")
    total = sum(count for count, *_ in CALLS.values())
    wait_until(
        lambda: len(browser.find("#tasks-table tbody tr")) == total,
        "a row for each call",
        timeout=20,
        detail=lambda: browser.text("body"),
    )
    browser.photograph("flower-tasks")
    assert "STARTED" not in browser.text("#tasks-table")


def test_a_hard_limit_is_one_failure(flower):
    """Celery 5.7 by itself tells it twice, from two threads of the pool."""
    wait_until(lambda: flower.server.events("ignore_soft_limit").get("task-failed"), "its event")
    assert flower.server.events("ignore_soft_limit") == {
        "task-received": 1,
        "task-started": 1,
        "task-failed": 1,
    }


def test_what_a_closed_gate_turns_away_never_started(flower):
    """It is received and fails, and its caller knows why."""
    wait_until(lambda: flower.server.events("turned_away").get("task-failed"), "its event")
    assert flower.server.events("turned_away") == {"task-received": 1, "task-failed": 1}
