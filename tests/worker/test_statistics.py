"""statistics() over several workers, beside what the calls themselves wrote down."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter

import pytest

from tests.support.marks import first_of
from tests.support.outage import Outage
from tests.support.places import ROOT
from tests.support.waiting import wait_until
from tests.worker.statistics_app import LANES

APP = "tests.worker.statistics_app"
PROGRAM = "tests.worker.asking_program"
CALLS = 60


def exact_p95(values):
    """The value that 95 % of all do not exceed: the nearest rank."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def seen_by(result):
    """What a call saw of itself: lane, worker, seconds, outcome."""
    seen = result.get(timeout=60, propagate=False)
    failed = isinstance(seen, ValueError)
    return *(seen.args if failed else seen), "failed" if failed else "succeeded"


def complete(statistics):
    return statistics if statistics.total.total == CALLS * len(LANES) else None


@pytest.mark.slow
def test_statistics_equal_what_the_calls_wrote_down(worker, load_app):
    """Two workers, five lanes: counts are the sum, p95 is within 2 % of the exact one."""
    app = load_app(APP)
    running = [worker(APP, "-c", "6") for _ in range(2)]
    spread = random.Random(7)
    results = [
        # Long enough that what measuring adds is far below 2 %.
        app.spend.apply_async(
            (spread.uniform(0.15, 0.5), number % 12 == 0), queue=LANES[number % len(LANES)]
        )
        for number in range(CALLS * len(LANES))
    ]
    saw = [seen_by(result) for result in results]
    statistics = wait_until(
        lambda: complete(app.budgets.statistics()), "all are counted", detail=running[0].tail
    )
    assert len({worker_name for _, worker_name, _, _ in saw}) == 2
    for lane in LANES:
        own = [(taken, outcome) for name, _, taken, outcome in saw if name == lane]
        told = statistics.lanes[lane]
        assert told.outcomes == Counter(outcome for _, outcome in own)
        assert told.duration.quantile(0.95) == pytest.approx(
            exact_p95([taken for taken, _ in own]), rel=0.02
        )
    assert statistics.silent == ()


def test_a_worker_that_does_not_answer_is_named(worker, load_app):
    """It answered before; now its name is in ``silent``, and the others count on."""
    app = load_app(APP)
    stays, goes = worker(APP, "-c", "1"), worker(APP, "-c", "1")
    wait_until(lambda: len(app.app.control.ping()) == 2, "both answer")
    assert app.budgets.statistics(timeout=10).silent == ()
    goes.kill()
    silent = wait_until(lambda: app.budgets.statistics().silent, "the other is named")
    assert [name.partition("@")[0] for name in silent] == [goes.name]
    assert stays.returncode is None


@pytest.mark.slow
def test_a_program_may_fork_after_it_has_asked(worker, servers, broker_url):
    """A child closes the pools that it inherits: it must find no answer there that is awaited."""
    worker(APP, "-c", "1")
    gone = worker(APP, "-c", "1")
    gone.kill()  # whoever does not answer is waited for, and on Redis that wait is cut off
    asked = subprocess.run(
        [sys.executable, "-m", PROGRAM], capture_output=True, text=True, timeout=60, check=False,
        cwd=ROOT, env=os.environ | servers.environment,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    before, after = json.loads(asked.stdout)
    # RabbitMQ has no table of those that should answer.
    expected = [gone.name] if broker_url.startswith("redis") else []
    assert [[name.partition("@")[0] for name in silent] for silent in (before, after)] == [
        expected, expected,
    ]  # fmt: skip


def test_an_outage_between_two_questions_is_not_noticed(worker, load_app, servers, broker_url):
    """No connection is kept that the broker may close."""
    running = worker(APP, "-c", "1")
    outage = Outage(servers.broker)
    app = load_app(APP, CELERY_BROKER_URL=outage.url)
    app.spend.delay(0.0).get(timeout=30)
    for _ in range(2):
        wait_until(
            lambda: app.budgets.statistics().total.total == 1, "it is counted",
            detail=running.tail,
        )  # fmt: skip
        outage.begin()
        outage.end()


@pytest.mark.parametrize("pool", first_of("prefork", "threads", "solo"))
def test_a_success_is_told_while_the_next_call_runs(worker, load_app, pool):
    """Only prefork counts several at a time: on solo no timer fires while a body runs."""
    app = load_app(APP)
    running = worker(APP, "-P", pool, "-c", "1")
    first, second = app.spend.delay(0.0), app.spend.delay(15)
    running.wait_for_log("budgets.call_ended outcome=succeeded", first.id)
    told = [line for line in running.log.splitlines() if "budgets.call_ended" in line]
    assert not any(second.id in line for line in told), "else this test shows nothing"
