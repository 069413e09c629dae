"""Workers without budgets beside those that have them: they answer, and have said nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from celery.bin.base import CLIContext
from celery.utils.nodenames import gethostname
from click.testing import CliRunner, Result

from celery_budgets import Budgets
from celery_budgets.child_process import BoundProcess
from celery_budgets.cli import lanes
from celery_budgets.telemetry.snapshots import Slots
from celery_budgets.units import MIB
from tests.support.marks import first_of
from tests.support.places import ROOT
from tests.support.waiting import wait_until

APP = "tests.worker.lanes_app"
#: One whose Python has no such package, and one of an app that does not use it.
PLAIN = ("without@h", "unused@h")


@pytest.fixture(
    params=["redis", pytest.param("rabbitmq", marks=[pytest.mark.rabbitmq, pytest.mark.slow])]
)
def broker_url(request) -> str:
    """Each broker; on RabbitMQ each question takes all of its time."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def budgets(load_app, broker_url) -> Budgets:
    return Budgets.of(load_app(APP).app)


@pytest.fixture
def beside(worker, servers, budgets) -> Iterator[str]:
    """A worker with budgets, beside two that have none; gives its name."""
    environment = os.environ | servers.environment | {"PYTHONPATH": str(ROOT)}
    unused = ("-A", "tests.worker.plain_app", "worker", "-n", PLAIN[1], "-P", "solo", "-Q", "plain")
    programs = [
        [sys.executable, "-m", "tests.worker.plain_program", PLAIN[0], "solo"],
        [sys.executable, "-m", "celery", *unused],
    ]
    started = [
        BoundProcess(
            each, parting=signal.SIGKILL, environment=environment, output=subprocess.DEVNULL
        )
        for each in programs
    ]
    try:
        ours = f"{worker(APP, '-Q', 'quick').name}@{gethostname()}"
        inspect = budgets.app.control.inspect(timeout=0.5)
        wait_until(lambda: set(PLAIN) <= set(inspect.ping() or ()), "both answer", timeout=30)
        yield ours
    finally:
        for process in started:
            process.end_group()


@pytest.fixture
def run(budgets) -> Callable[..., Result]:
    """Run `celery lanes ARGUMENTS` in this process."""
    context = CLIContext(budgets.app, no_color=True, workdir=None)
    return lambda *arguments: CliRunner().invoke(lanes, arguments, obj=context)


def test_an_error_is_no_answer(beside, budgets, run, broker_url):
    """Nothing is made up of it: no memory, no gate, no slots; and it is named everywhere."""
    # RabbitMQ does not tell who is there, so all of the time is waited.
    seconds = 1.5 if broker_url.startswith("amqp") else 10.0
    in_time = ("--timeout", str(seconds))
    memory, slots = budgets.memory(seconds), budgets.concurrency(seconds)
    assert (list(memory.workers), set(memory.silent)) == ([beside], set(PLAIN))
    assert (list(slots.workers), set(slots.silent)) == ([beside], set(PLAIN))
    assert slots.total == Slots(0, 2, 0)
    assert set(budgets.statistics(seconds).silent) == set(PLAIN)
    with budgets.scope("some") as scope:
        assert set(scope.statistics(seconds).silent) == set(PLAIN)

    shown = json.loads(run("status", "--json", *in_time).output)
    assert shown["workers"] == [beside]
    assert set(shown["silent"]) == set(shown["plain"]) == set(PLAIN)
    for command in (["status", *in_time], ["top", "--once", "--interval", "0.1"]):
        text = run(*command).output
        assert all(f"{name} runs without budgets" in text for name in PLAIN), text
        assert "1 worker, 0 of 2 slots active" in text

    done = run("pause", "quick", *in_time)
    assert (done.exit_code, done.stdout) == (0, f"{beside}: lane quick: paused, 0 running\n")
    assert all(f"{name} runs without budgets" in done.stderr for name in PLAIN)
    for command in (["set", "quick", "--concurrency", "1"], ["resume", "quick"]):
        named = run(*command, "-d", PLAIN[1], *in_time)
        assert (named.exit_code, named.stdout) == (1, "")
        assert f"Error: {PLAIN[1]} runs without budgets" in named.stderr


@pytest.mark.parametrize("pool", first_of("solo", "threads"))
def test_an_embedded_worker_answers(servers, pool):
    """celery.contrib.testing starts workers for which celeryd_init is never sent."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.worker.embedded_program", pool],
        cwd=ROOT, env=os.environ | servers.environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (seen["silent"], seen["lanes"]) == ([], ["quick"])
    assert seen["rss"] > 20 * MIB
    assert seen["paused"] == [{"ok": "lane quick: paused, 0 running"}]
    assert seen["limits"] == [{"ok": "time limits set successfully"}]
