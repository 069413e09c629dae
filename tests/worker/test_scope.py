"""Request scopes on real workers: exact statistics, nested calls, and cancelling."""

from __future__ import annotations

from collections import Counter

import pytest
from kombu import Connection

from tests.brokers.gate import waiting_in
from tests.support.waiting import wait_until
from tests.worker.scope_app import LANES

APP = "tests.worker.scope_app"


@pytest.fixture
def app(load_app, servers, broker_url):
    """The app of the tests, on each broker in turn, without what an earlier test left there."""
    app = load_app(APP)
    with Connection(app.app.conf.broker_url) as connection, connection.channel() as channel:
        for queue in LANES:
            channel.queue_delete(queue)
    return app


def begun(app, name):
    return int(app.redis().get(f"begun:{name}") or 0)


def test_the_statistics_of_a_scope_are_exact(worker, app):
    """100 calls over five lanes and two workers: 85 good, 10 failing, 3 at the hard limit, 2 lost.

    Among as many calls outside of it, which do not count.
    """
    running = [worker(APP, "-Q", ",".join(LANES), "-c", "5") for _ in range(2)]
    how = ["ok"] * 85 + ["fail"] * 10 + ["hard"] * 3 + ["sigkill"] * 2
    results = []
    with app.budgets.scope("req-42") as scope:
        for number, word in enumerate(how):
            limits = {"soft_time_limit": 0.5, "time_limit": 1.0} if word == "hard" else {}
            results.append(app.act.apply_async((word,), queue=LANES[number % len(LANES)], **limits))
    outside = [app.act.apply_async(("ok",), queue=LANES[n % len(LANES)]) for n in range(100)]
    for result in [*results, *outside]:
        result.get(timeout=60, propagate=False)
    total = wait_until(
        lambda: (found := scope.statistics()).total.total >= 100 and found,
        "100 are counted", timeout=20, detail=running[0].tail,
    )  # fmt: skip
    assert total.silent == ()
    assert total.total.outcomes == Counter(
        succeeded=85, failed=10, hard_time_limit=3, worker_lost=2
    )
    assert {lane: calls.total for lane, calls in total.lanes.items()} == dict.fromkeys(LANES, 20)
    wait_until(lambda: app.budgets.statistics().total.total == 200, "all 200", timeout=20)


def test_what_calls_send_is_of_their_scope(worker, app):
    """Two levels of calls that send two each: 1 + 2 + 4; half of them in a scope of their own."""
    running = worker(APP, "-Q", ",".join(LANES), "-c", "2")
    with app.budgets.scope("req") as scope:
        app.tree.delay(2)
    wait_until(
        lambda: scope.statistics().total.succeeded == 7, "seven calls", timeout=20,
        detail=running.tail,
    )  # fmt: skip
    with scope:
        branch = app.budgets.scope("branch")
    # One of the first level and the two that it sends, and one of the other's two.
    assert branch.statistics().total.succeeded == 4


def test_calls_inside_have_what_is_left_of_its_time(worker, app):
    """A message carries the end of the scope, and a call sent by a call does too."""
    worker(APP, "-Q", ",".join(LANES), "-c", "2")
    with app.budgets.scope("req", timeout=30) as scope:
        path, (soft, hard) = app.tell.delay().get(timeout=20)
    assert path == "req"
    assert hard - soft == pytest.approx(15, abs=0.1)
    assert scope.remaining() > 0


def test_cancelling_leaves_none_waiting(worker, app):
    """What runs goes on; all that waits is revoked, and so is what comes later."""
    running = worker(APP, "-Q", ",".join(LANES), "-c", "4")
    with app.budgets.scope("req") as scope:
        results = [
            app.hold.apply_async(("a",), queue=LANES[number % len(LANES)]) for number in range(40)
        ]
    wait_until(lambda: begun(app, "a") == 4, "four run", timeout=20, detail=running.tail)
    scope.cancel()
    running.wait_for_log("budgets.scope_cancelled", "scope=req", "terminated=0")
    app.redis().set("go:a", 1)
    ends = [result.get(timeout=30, propagate=False) for result in results]
    assert ends.count("req") == begun(app, "a") == 4
    with app.budgets.scope("req"):
        late = app.act.apply_async(("ok",), queue="one")
    late.get(timeout=20, propagate=False)
    assert late.state == "REVOKED"
    assert [waiting_in(app, lane) for lane in LANES] == [0] * 5
    assert app.act.apply_async(("ok",), queue="one").get(timeout=20) == "ok"
    counted = wait_until(
        lambda: (found := scope.statistics().total).total == 41 and found, "all", timeout=20
    )
    assert counted.outcomes == Counter(succeeded=4, revoked=37)


def test_cancelling_ends_what_runs_where_that_is_asked(worker, app):
    """As revoke(terminate=True); a call outside of the scope runs on."""
    running = worker(APP, "-Q", ",".join(LANES), "-c", "3")
    other = app.hold.apply_async(("b",), queue="one")
    with app.budgets.scope("req") as scope, app.budgets.scope("part"):
        results = [app.hold.apply_async(("a",), queue="one") for _ in range(6)]
    wait_until(lambda: begun(app, "a") and begun(app, "b"), "both", detail=running.tail)
    scope.cancel(running=True)
    for result in results:
        result.get(timeout=30, propagate=False)
    assert {result.state for result in results} == {"REVOKED"}
    app.redis().set("go:b", 1)
    assert other.get(timeout=20) is None
    counted = wait_until(
        lambda: (found := scope.statistics().total).total == 6 and found, "all", timeout=20
    )
    assert counted.outcomes == Counter(revoked=6)


@pytest.mark.slow
def test_a_worker_with_a_state_database_remembers_what_is_cancelled(
    worker, load_app, servers, tmp_path
):
    """As with Celery's revoked ids, which mingling workers tell each other in the same form."""
    app = load_app(APP)
    arguments = (APP, "-Q", "one", "-c", "1", "--statedb", str(tmp_path / "state"))
    first = worker(*arguments)
    app.budgets.scope("req").cancel()
    first.wait_for_log("budgets.scope_cancelled", "scope=req")
    first.stop()
    with app.budgets.scope("req"):
        late = app.act.apply_async(("ok",), queue="one")
    second = worker(*arguments)
    late.get(timeout=20, propagate=False)
    assert late.state == "REVOKED", second.tail()
