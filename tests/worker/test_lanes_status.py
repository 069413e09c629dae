"""`celery lanes status`, `celery lanes top` and what `Budgets` tells of now, with real workers."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from celery_budgets import Budgets
from celery_budgets.sending.remote_control import Inspection
from celery_budgets.sending.status.alerts import Alert
from celery_budgets.sending.status.overview import Overview, Row
from celery_budgets.telemetry.snapshots import Slots
from celery_budgets.units import MIB
from tests.support.apps import Servers
from tests.support.marks import first_of
from tests.support.places import ROOT
from tests.support.waiting import wait_until
from tests.support.workers import RunningWorker

APP = "tests.worker.lanes_app"
QUIT_SECONDS = 10.0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", APP, "lanes", *arguments]


def run(servers: Servers, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `celery lanes ARGUMENTS` as a process of its own, which has never seen a worker."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT, env=os.environ | servers.environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def status(servers: Servers) -> dict:
    done = run(servers, "status", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def two(worker) -> tuple[RunningWorker, RunningWorker]:
    """One worker for each lane: processes, and threads with a message more in hand than runs."""
    slow = ("-Q", "slow", "-P", "threads", "--prefetch-multiplier", "2")
    return worker(APP, "-Q", "quick"), worker(APP, *slow)


@contextmanager
def stopped(worker: RunningWorker) -> Iterator[None]:
    """A worker that hangs: it is there, and does nothing."""
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker.pid, signal.SIGCONT)


def test_status_tells_what_runs(two, servers, load_app):
    """Slots, calls, durations and memory are those of the calls that were made."""
    module = load_app(APP)
    budgets = Budgets.of(module.app)
    for call in [module.pid.delay() for _ in range(7)]:
        call.get(timeout=10)
    module.nap.delay(0.2).get(timeout=10)
    naps = [module.nap.delay(30, until="morning") for _ in range(2)]
    wait_until(lambda: budgets.concurrency().lanes["slow"] == Slots(1, 1, 1), "one naps, one waits")
    shown = status(servers)
    assert (shown["silent"], shown["unserved"]) == ([], [])
    assert {name.partition("@")[0] for name in shown["workers"]} == {w.name for w in two}
    quick, slow = shown["lanes"]
    assert (quick["lane"], quick["active"], quick["limit"], quick["calls"]) == ("quick", 0, 2, 7)
    assert (slow["lane"], slow["active"], slow["limit"], slow["calls"]) == ("slow", 1, 1, 1)
    assert slow["waiting"] == 1
    # One nap of 0.2 s: every percentile is that nap.
    assert slow["p50"] == slow["p95"] == pytest.approx(0.2, abs=0.1)
    for row in (quick, slow):
        assert 20 * MIB < row["rss"] < row["rss_warning"] == 400 * MIB
        assert (row["gate"], row["alerts"], row["failed"], row["killed"]) == ("open", [], 0, 0)
    module.app.backend.client.set("morning", 1)
    for nap in naps:
        nap.get(timeout=20)


def test_memory_and_concurrency_of_all_workers(two, load_app):
    """Each pool process by its pid; the worker itself where it runs the calls."""
    module = load_app(APP)
    budgets = Budgets.of(module.app)
    memory = budgets.memory(timeout=10)
    by_name = {name.partition("@")[0]: facts for name, facts in memory.workers.items()}
    prefork, threads = (by_name[worker.name] for worker in two)
    assert set(prefork.pool_rss_bytes) == set(two[0].pool_pids())
    assert prefork.largest_bytes == max(prefork.pool_rss_bytes.values()) > 20 * MIB
    assert threads.pool_rss_bytes == {}
    assert threads.largest_bytes == threads.rss_bytes > 20 * MIB
    assert set(threads.levels) == {"slow"}
    slots = budgets.concurrency(timeout=10)
    assert slots.lanes == {"quick": Slots(0, 2, 0), "slow": Slots(0, 1, 0)}
    assert slots.total == Slots(0, 3, 0)
    assert memory.silent == slots.silent == budgets.statistics(timeout=10).silent == ()


@pytest.mark.slow
def test_a_worker_that_hangs_is_named(two, servers, load_app):
    """Also by a process that has never had an answer from it: its mailbox stands at the broker."""
    budgets = Budgets.of(load_app(APP).app)
    hung = two[1]
    with stopped(hung):
        done = run(servers, "status")
        assert done.returncode == 0, done.stderr
        line = next(line for line in done.stdout.splitlines() if line.startswith("no answer"))
        assert hung.name in line
        assert "no worker serves: slow" in done.stdout
        for answer in (budgets.statistics(), budgets.memory(), budgets.concurrency()):
            assert [name.partition("@")[0] for name in answer.silent] == [hung.name]
    wait_until(lambda: not budgets.concurrency().silent, "it answers again")


@pytest.mark.slow
def test_on_rabbitmq_a_worker_is_missed_by_whom_it_has_answered(worker, rabbitmq_url, load_app):
    """RabbitMQ tells nobody which mailboxes there are."""
    running = worker(APP, "-Q", "quick")
    budgets = Budgets.of(load_app(APP).app)
    assert budgets.concurrency().lanes == {"quick": Slots(0, 2, 0)}
    with stopped(running):
        (silent,) = budgets.concurrency().silent
        assert silent.startswith(running.name)


@pytest.mark.slow
def test_a_worker_that_stopped_warmly_is_not_missed(two, servers):
    """It took its mailbox down; what is missing is a worker for its lane."""
    assert two[1].stop() == 0
    shown = status(servers)
    assert (shown["silent"], shown["unserved"]) == ([], ["slow"])


@pytest.mark.slow
def test_drift_is_seen(two, servers, load_app):
    """Somebody has taken a slot and a queue away at run time."""
    module = load_app(APP)
    module.app.control.pool_shrink(1, reply=True)
    module.app.control.cancel_consumer("quick", reply=True)

    def alerts() -> set[str]:
        return {alert["text"] for row in status(servers)["lanes"] for alert in row["alerts"]}

    wanted = {"drift: 1 slot instead of 2", "drift: queue quick is not consumed"}
    wait_until(lambda: wanted <= alerts(), "the drift is shown", detail=lambda: str(alerts()))


def test_without_workers_status_is_code_1(servers):
    """With a broker that answers."""
    done = run(servers, "status", "--timeout", "0.2")
    assert done.returncode == 1
    assert done.stderr == "Error: no worker answered within 0.2 s\n"
    assert "no worker serves: quick, slow" in done.stdout


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, servers: Servers, *arguments: str) -> None:
        self.outside, self.inside = pty.openpty()
        termios.tcsetwinsize(self.inside, (40, 160))
        self.before = termios.tcgetattr(self.inside)
        self.seen = b""
        # The terminal has a size of its own, whatever the tests' terminal has.
        sizeless = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command(*arguments),
            cwd=ROOT, env=sizeless | servers.environment | {"TERM": "xterm-256color"},
            stdin=self.inside, stdout=self.inside, stderr=self.inside, start_new_session=True,
        )  # fmt: skip

    def read(self) -> bytes:
        """Everything that it has printed so far."""
        while select.select([self.outside], [], [], 0)[0]:
            self.seen += os.read(self.outside, 65536)
        return self.seen

    def wait_for(self, text: str) -> None:
        wait_until(
            lambda: text.encode() in self.read(),
            f"{text!r} on the terminal",
            timeout=30,
            detail=lambda: self.read()[-4000:].decode(errors="replace"),
        )

    def press(self, keys: str) -> None:
        os.write(self.outside, keys.encode())

    def wait_exit(self) -> int:
        def ended() -> bool:
            self.read()  # a full terminal would hold it up
            return self.process.poll() is not None

        wait_until(ended, "it ends", timeout=QUIT_SECONDS)
        self.read()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.outside)
        os.close(self.inside)


@pytest.fixture
def terminal(servers) -> Iterator[Terminal]:
    opened = Terminal(servers, "top", "--interval", "0.2")
    yield opened
    opened.close()


def quits(terminal: Terminal) -> None:
    """It ended well, and left the terminal as it was: own screen closed, keys seen again."""
    assert terminal.wait_exit() == 0
    assert terminal.seen.count(b"\x1b[?1049h") == terminal.seen.count(b"\x1b[?1049l") == 1
    assert termios.tcgetattr(terminal.inside) == terminal.before
    assert b"Traceback" not in terminal.seen


def test_top_is_live_and_q_quits(two, terminal, load_app):
    """A call that starts is seen without a key; other keys do nothing."""
    module = load_app(APP)
    terminal.wait_for("q quits")
    terminal.wait_for("0/1")
    call = module.nap.delay(2)
    terminal.wait_for("1/1")
    call.get(timeout=10)
    terminal.press("x")
    module.nap.delay(0.1).get(timeout=10)
    terminal.wait_for("2 workers, 0 of 3 slots active")
    assert terminal.process.poll() is None
    terminal.press("q")
    quits(terminal)


@pytest.mark.slow
def test_ctrl_c_quits_top(two, terminal):
    """As in every program of this kind."""
    terminal.wait_for("quick")
    os.kill(terminal.process.pid, signal.SIGINT)
    quits(terminal)


@pytest.mark.slow
def test_q_quits_while_a_worker_is_waited_for(two, terminal):
    """A key does not wait for the answers of workers that hang."""
    terminal.wait_for("slow")
    with stopped(two[1]):
        terminal.wait_for("no answer from")
        terminal.press("q")
        quits(terminal)


@pytest.mark.slow
def test_piped_top_prints_a_table_per_interval(two, servers):
    """Each is written at once, and Ctrl-C ends it with code 0."""
    process = subprocess.Popen(
        command("top", "--interval", "0.2"),
        cwd=ROOT, env=os.environ | servers.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    while sum(line.startswith("celery lanes top") for line in lines) < 3:
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=QUIT_SECONDS)
    assert process.returncode == 0, rest
    assert "\x1b" not in "".join(lines)
    assert "Traceback" not in rest


@pytest.mark.slow
@pytest.mark.parametrize("pool", first_of("prefork", "threads"))
def test_an_alert_about_a_kill_goes_away(worker, load_app, pool):
    """Here after 3 s; the kill stays in the figures since the start."""
    module = load_app("tests.worker.forgetful_app")
    running = worker("tests.worker.forgetful_app", "-P", pool)
    asking = Inspection(module.app)

    def seen() -> Row:
        (row,) = Overview.of(asking.ask(timeout=5), ["lane"]).rows
        return row

    assert seen().alerts == ()
    module.stubborn.delay()
    alert = Alert("critical", text := "1 killed at the hard time limit in the last 3 s")
    wait_until(lambda: alert in seen().alerts, "the alert", detail=running.tail)
    gone = wait_until(
        lambda: (now := seen()) and text not in str(now.alerts) and now, "it is over",
        detail=running.tail,
    )  # fmt: skip
    assert gone.killed == 1
