"""The page in a real browser, with real workers and with answers of many.

Pictures of it are left in ``build/screenshots``.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_budgets import Budgets, Lane
from celery_budgets.cli import lanes
from celery_budgets.web.access import AskProgram, NeedToken
from celery_budgets.web.application import Application
from celery_budgets.web.desk import Desk
from celery_budgets.web.news import News
from celery_budgets.web.server import PageServer
from tests.support.answers import WorkersOfPage, answer, ended, lane
from tests.support.apps import Servers, fresh_app
from tests.support.browser import PageBrowser
from tests.support.places import ROOT
from tests.support.programs import program
from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.worker.test_demo import Demo
from tests.worker.web_app import HOSTILE

pytest.importorskip("selenium.webdriver")
pytestmark = pytest.mark.slow
APP = "tests.worker.web_app"
SCREENSHOTS = ROOT / "build" / "screenshots"


def serve(app: Any, inspection: Any = None, access: Any = None) -> PageServer:
    news = News(app, 0.5, inspection=inspection)
    desk = Desk(app, news, read_only=False)
    server = PageServer("127.0.0.1", 0, Application(desk, access or AskProgram(None)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[PageBrowser]:
    for name in ("chromium", "chromedriver"):
        program(name)
    made = PageBrowser(tmp_path_factory.mktemp("chromium"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def shop(module_worker, load_module_app, browser) -> Iterator[Any]:
    """Two workers, some calls that have ended in each way, and the page, opened by its token."""
    module_worker(APP, "-Q", "quick,slow")
    module_worker(APP, "-Q", "strict")
    module = load_module_app(APP)
    calls = [module.ask.delay(0.01) for _ in range(20)]
    calls += [module.fail.delay(), module.hostile.delay(), module.hang.delay()]
    naps = [module.nap.delay(45) for _ in range(4)]
    access = NeedToken()
    server = serve(module.app, access=access)
    for call in calls:
        call.get(timeout=20, propagate=False)
    browser.open(f"{server.url}?token={access.token}")
    yield SimpleNamespace(module=module, server=server, naps=naps)
    browser.open("about:blank")
    for nap in naps:
        nap.revoke(terminate=True)
    server.shutdown()
    server.server_close()


def row(name: str) -> str:
    return f'tr.lane[data-lane="{name}"]'


def until_says(browser: PageBrowser, selector: str, *words: str, timeout: float = 10) -> None:
    def said() -> bool:
        text = browser.text(selector)
        return all(word in text for word in words)

    wait_until(
        said, f"{selector} says {words}", timeout=timeout, detail=lambda: browser.text("body")
    )


def open_lane(browser: PageBrowser, name: str) -> None:
    button = f'button.name[data-lane="{name}"]'
    if not browser.find(f'{button}[aria-expanded="true"]'):
        browser.click(button)
    wait_until(lambda: browser.find("tr.behind"), "it is open")


def say_yes(browser: PageBrowser, title: str) -> None:
    """Answer the question, and read what came of it."""
    until_says(browser, "#dialog-title", "?")
    browser.click("#dialog-yes")
    until_says(browser, "#dialog-title", title, timeout=20)
    browser.click("#dialog-no")
    wait_until(lambda: not browser.find("dialog[open]"), "the dialog is closed")


def test_the_numbers_are_those_of_status(shop, browser):
    """Of each lane; and the token is gone from the address."""
    until_says(browser, row("strict"), "1 killed")
    until_says(browser, row("slow"), "2 of 2")
    told = browser.run("return fetch('lanes.json').then(answer => answer.json())")
    for found in told["summary"]:
        shown = browser.text(row(found["lane"]))
        assert f"{found['active']} of {found['limit']}" in shown
        if found["hour"]:
            assert f"{sum(found['hour'].values())} call" in shown
        if found["backlog"]:
            # A cell ends with a tab, or with a line where it has several.
            assert re.search(rf"[\t\n]{found['backlog']}\n", shown), shown
    assert "token" not in browser.run("return location.href")
    assert "no worker serves it" in browser.text(row("unserved"))


def test_a_kill_appears_soon_with_its_stack(shop, browser):
    """Within 5 s of its end."""
    before = browser.text("#kills-total")
    shop.module.hang.delay().get(timeout=20, propagate=False)
    wait_until(lambda: browser.text("#kills-total") != before, "it is counted", timeout=5)
    browser.click("#kills summary")
    until_says(browser, "#kills", "in hang", "hard time limit")


def test_what_runs_and_where_it_is(shop, browser):
    """Behind the row, with a button for its stack; and why another one waits."""
    open_lane(browser, "slow")
    until_says(browser, "tr.behind", shop.naps[0].id, "of 60 s / 90 s")
    browser.click(f'button[data-task="{shop.naps[0].id}"]')
    until_says(browser, "#dialog", "in nap")
    browser.click("#dialog-no")
    browser.run("document.getElementById('task-id').value = arguments[0]", shop.naps[3].id)
    browser.click("#why button")
    until_says(browser, "#because", "waits")
    browser.click('button.name[data-lane="slow"]')


def test_pause_and_resume_by_click(shop, browser):
    """After a question; *No* changes nothing."""
    open_lane(browser, "quick")
    browser.click('button[data-do="pause"][data-lane="quick"]')
    until_says(browser, "#dialog-title", "Pause lane quick?")
    browser.click("#dialog-no")
    assert "paused" not in browser.text(row("quick"))
    browser.click('button[data-do="pause"][data-lane="quick"]')
    say_yes(browser, "Lane quick is paused")
    until_says(browser, row("quick"), "paused")
    call = shop.module.ask.delay()
    browser.click('button[data-do="resume"][data-lane="quick"]')
    say_yes(browser, "Lane quick is resumed")
    call.get(timeout=10)
    wait_until(lambda: "paused" not in browser.text(row("quick")), "it goes on")


def test_release_by_click(shop, browser):
    """Of who holds a place of a limit; who waits for it goes on."""
    holds = shop.module.serve.delay("ann", 40)
    limit = '#limits tr[data-limit="customer [ann]"]'
    until_says(browser, limit, "1 of 1", "1 holder")
    waits = shop.module.serve.delay("ann", 0)
    until_says(browser, limit, "oldest")
    browser.click(f"{limit} summary")
    browser.run("document.getElementById('limits-box').scrollIntoView()")
    browser.photograph(SCREENSHOTS / "lanes-limits.png")
    browser.click(f'{limit} button[data-do="release"]')
    until_says(browser, "#dialog-title", "Take its places away?")
    browser.click("#dialog-no")
    until_says(browser, limit, "1 of 1")
    browser.click(f'{limit} button[data-do="release"]')
    say_yes(browser, "Its places are free")
    waits.get(timeout=20)
    holds.revoke(terminate=True)


def test_markup_in_a_name_is_text(shop, browser):
    """It is read, and runs nowhere."""
    open_lane(browser, "quick")
    until_says(browser, "tr.behind", HOSTILE)
    assert browser.run("return document.title").endswith("shop")
    assert browser.find("img") == []


@pytest.mark.parametrize(("name", "width"), [("light", 1400), ("dark", 1400), ("small", 380)])
def test_everybody_can_read_it(shop, browser, name, width):
    """axe-core finds nothing serious, light, dark and small; nothing is wider than the window."""
    open_lane(browser, "slow")
    browser.look(width=width, dark=name == "dark")
    wide = "return document.documentElement.scrollWidth - innerWidth"
    wait_until(lambda: browser.run(wide) <= 0, "nothing is wider than the window")
    assert browser.findings_of_axe() == []
    browser.photograph(SCREENSHOTS / f"lanes-{name}.png")
    browser.look(width=1400)


def test_by_keyboard_alone(shop, browser):
    """The first lane is opened and closed; the focus stays while news come."""
    browser.run("document.querySelector('button.name').focus()")
    before = browser.find("tr.behind[id='behind-0']")
    active = browser.driver.switch_to.active_element
    active.send_keys("\ue007")
    wait_until(
        lambda: bool(browser.find("tr.behind[id='behind-0']")) != bool(before), "it has changed"
    )
    state = browser.text("#state")
    wait_until(lambda: browser.text("#state") != state, "there are news")
    focused = "return document.activeElement.className"
    assert browser.run(focused) == "name"


def test_nothing_of_another_host_and_no_complaint(shop, browser):
    """In all of the above."""
    # The browser's own pages are not of a host.
    asked = {url for url in browser.requested() if url.startswith(("http", "ws"))}
    assert asked
    assert {url for url in asked if not url.startswith(shop.server.url)} == set()
    assert browser.complaints() == []


def test_a_broker_that_is_stopped_and_started_again(browser, worker, tmp_path):
    """The last news stay, with since when; it goes on when the server and its worker are back."""
    broker = Server(tmp_path)
    servers = Servers(broker.url, broker.url)
    worker(APP, "-Q", "quick", servers=servers)
    with fresh_app(APP, servers, {}) as module:
        page = serve(module.app)
        try:
            browser.open(page.url)
            until_says(browser, row("quick"), "0 of 4")
            broker.kill()
            until_says(browser, "#stale", "No news since", "the broker does not answer")
            until_says(browser, row("quick"), "0 of 4")
            until_says(browser, "#state", "no news")
            broker.start()
            until_says(browser, "#state", "live", timeout=60)
            until_says(browser, row("quick"), "0 of 4", timeout=60)
            wait_until(lambda: not browser.text("#stale"), "the warning has gone")
        finally:
            browser.open("about:blank")
            page.shutdown()
            page.server_close()
    broker.end()


def test_the_load_of_the_demo(browser, tmp_path, redis_url):
    """While it runs, kills with their stacks; when it is done, the numbers are those of status."""
    servers = Servers(redis_url, redis_url)
    demo = Demo(tmp_path / "reports", "--web", "--limit", "60", **servers.environment)
    try:
        demo.wait_for("?token=")
        address = re.search(r"http://127\S+", demo.text)
        assert address is not None
        browser.open(address.group())
        wait_until(lambda: browser.find("#kills details"), "a kill", timeout=90,
                   detail=lambda: demo.text)  # fmt: skip
        demo.wait_for("the page stays open")
        with fresh_app("examples.tools.app", servers, {}) as module:
            wait_until(lambda: not differences(browser, module.app), "they are equal", timeout=30,
                       detail=lambda: str(differences(browser, module.app)))  # fmt: skip
        demo.process.send_signal(signal.SIGINT)
        demo.wait()
    finally:
        browser.open("about:blank")
        demo.close()


def differences(browser: PageBrowser, app: Any) -> list[str]:
    """What `celery lanes status --json` prints, and the page does not show."""
    context = CLIContext(app, no_color=True, workdir=None)
    done = CliRunner().invoke(lanes, ["status", "--json"], obj=context)
    assert done.exit_code == 0, done.output
    missing = []
    for found in json.loads(done.output)["summary"]:
        shown = browser.text(row(found["lane"]))
        hour = Counter(found["hour"])
        killed = sum(hour[name] for name in ("hard_time_limit", "memory_limit", "worker_lost"))
        failed = hour["failed"] + hour["soft_time_limit"]
        texts = [f"{found['active']} of {found['limit']}"]
        texts += [f"{hour.total()} call"] if hour else ["no call ended"]
        texts += [f"{killed} killed"] * bool(killed) + [f"{failed} failed"] * bool(failed)
        missing += [f"{found['lane']}: {text}" for text in texts if text not in shown]
    return missing


class TestWithoutWorkers:
    """Pages whose answers are made here."""

    @pytest.fixture
    def show(self, browser, monkeypatch) -> Iterator[Any]:
        servers: list[PageServer] = []
        for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
            monkeypatch.delenv(name, raising=False)  # those of the workers of this module

        def show(lanes: int, workers: Any) -> None:
            app = Celery("many", set_as_current=False, broker="memory://")
            app.conf.budgets_global_concurrency = lanes
            Budgets(app, lanes=[Lane(f"lane{n}", 1) for n in range(lanes)])
            servers.append(serve(app, workers))
            browser.open(servers[-1].url)

        yield show
        browser.open("about:blank")
        for server in servers:
            server.shutdown()
            server.server_close()

    def test_an_empty_system(self, show, browser):
        """No worker: the lanes are there, and say so."""

        class Nobody(WorkersOfPage):
            def ask(self, timeout: float = 1.0, **more: Any) -> Any:
                return super().ask(timeout, **more)._replace(by_worker={})

        show(3, Nobody())
        until_says(browser, "#notes", "no worker answers")
        assert browser.text("#rows").count("no worker serves it") == 3
        until_says(browser, "#kills", "No call was killed")
        assert browser.findings_of_axe() == []

    def test_fifty_lanes_and_twenty_workers(self, show, browser):
        """Drawn in well under a refresh."""

        class Many(WorkersOfPage):
            def ask(self, timeout: float = 1.0, **more: Any) -> Any:
                found = super().ask(timeout, **more)
                if more:
                    return found
                lanes = {f"lane{n}": lane(active=1) for n in range(50)}
                calls = ended("lane7", 0.5, succeeded=3, failed=1)
                return found._replace(
                    by_worker={f"w{n}@host": answer(lanes, calls) for n in range(20)}
                )

        show(50, Many())
        until_says(browser, row("lane49"), "20 of 40")
        until_says(browser, "#totals", "20")
        spent = browser.run(
            "const began = performance.now(); document.querySelector('button.name').click();"
            "return performance.now() - began"
        )
        assert spent < 500
        until_says(browser, "tr.behind", "w19@host")

    def test_a_lost_broker(self, show, browser):
        """The last news stay, with since when; it goes on by itself."""
        workers = WorkersOfPage()
        show(1, workers)
        until_says(browser, "#state", "live")
        workers.away = OSError("nobody there")
        until_says(browser, "#stale", "No news since", "nobody there")
        browser.photograph(SCREENSHOTS / "lanes-lost.png")
        assert browser.find(row("lane0"))
        workers.away = None
        until_says(browser, "#state", "live")
        wait_until(lambda: not browser.text("#stale"), "the warning has gone")


def test_what_it_costs_to_look(shop):
    """At a refresh of 5 s with 10 workers: the time of one round's own work."""
    lanes = {f"lane{n}": lane(active=1) for n in range(5)}
    calls = ended("lane1", 0.5, succeeded=500, failed=1)
    answers = {f"w{n}@host": answer(lanes, calls) for n in range(10)}

    class Ten(WorkersOfPage):
        def ask(self, timeout: float = 1.0, **more: Any) -> Any:
            found = super().ask(timeout, **more)
            return found if more else found._replace(by_worker=json.loads(json.dumps(answers)))

    news = News(shop.module.app, inspection=Ten())
    news._round()
    began = time.thread_time()
    for _ in range(5):
        news._round()
    assert (time.thread_time() - began) / 5 < 0.05
