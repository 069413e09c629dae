"""statistics() over several workers, beside what the calls themselves wrote down."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from tests.support import wait_until
from tests.worker.statistics_app import LANES

APP = "tests.worker.statistics_app"
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


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_success_is_told_while_the_next_call_runs(worker, load_app, pool):
    """Only prefork counts several at a time: on solo no timer fires while a body runs."""
    app = load_app(APP)
    running = worker(APP, "-P", pool, "-c", "1")
    first, second = app.spend.delay(0.0), app.spend.delay(15)
    running.wait_for_log("budgets.call_ended outcome=succeeded", first.id)
    told = [line for line in running.log.splitlines() if "budgets.call_ended" in line]
    assert not any(second.id in line for line in told), "else this test shows nothing"
