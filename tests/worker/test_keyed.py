"""Idempotency keys on real workers: one call runs, and its twins end as it does."""

from __future__ import annotations

import json
import signal

import psutil
import pytest
from celery import chain, chord
from celery.exceptions import TimeLimitExceeded
from kombu import Connection

from celery_budgets.errors import ConfigurationError
from celery_budgets.idempotency.run_once import task_id_of
from celery_budgets.telemetry import attributes as names
from tests.brokers.test_gate_crashes import give_back_what_the_dead_held
from tests.support.marks import first_of
from tests.support.outage import Outage
from tests.support.places import json_lines
from tests.support.waiting import wait_until

APP = "tests.worker.keyed_app"


def number(app, name):
    return int(app.redis().get(name) or 0)


def delete_queues(app):
    with Connection(app.app.conf.broker_url) as connection, connection.channel() as channel:
        for queue in ("keyed", "once"):
            channel.queue_delete(queue)


def wait_for(app, name, value=1, timeout=20, detail=None):
    wait_until(lambda: number(app, name) >= value, name, timeout=timeout, detail=detail)


def statistics_with(app, twins, ended, detail):
    """Wait until that many deliveries have ended, and as many twins are among them at least."""

    def complete():
        total = app.budgets.statistics().total
        final = total.total - total.outcomes["retried"]
        return total if total.twins >= twins and final == ended else None

    return wait_until(complete, f"{ended} ends, {twins} twins", timeout=20, detail=detail)


@pytest.fixture
def app(load_app, servers, broker_url):
    """The app of the tests, on each broker in turn, without what an earlier test left there."""
    app = load_app(APP)
    delete_queues(app)
    return app


@pytest.mark.parametrize("pool", first_of("prefork", "threads"))
def test_twins_get_the_result_of_the_one_that_runs(worker, app, pool):
    """Five calls, one body; they share an id. Twins that wait hold no slot, and count as such."""
    running = worker(APP, "-Q", "keyed", "-c", "2", "-P", pool)
    results = [app.hold.apply_async(("a",), idempotency_key="a") for _ in range(5)]
    assert {result.id for result in results} == {task_id_of(app.hold.name, "a")}
    wait_for(app, "begun:a", detail=running.tail)
    wait_until(lambda: app.budgets.statistics().total.twins >= 6, "they come back", timeout=20)
    # One slot of two is free all the time, but for moments.
    assert app.add.delay(1, 2).get(timeout=20) == 3
    app.redis().set("go:a", 1)
    assert len({result.get(timeout=20) for result in results}) == 1
    total = statistics_with(app, twins=4, ended=6, detail=running.tail)
    assert total.outcomes["succeeded"] == 6
    assert total.twins == 4 + total.outcomes["retried"]
    assert total.duration.count == 2  # twins take no time of the tool's
    assert (number(app, "begun:a"), number(app, "most:a")) == (1, 1)


def test_a_twin_of_a_call_that_is_done_does_not_run(worker, app):
    """The stored result stays as it is, and the log says that it was a twin."""
    running = worker(APP, "-Q", "keyed", "-c", "2")
    first = app.work.apply_async(("a", 0), idempotency_key="a")
    assert first.get(timeout=20) == 1
    stored = app.redis().get(app.app.backend.get_key_for_task(first.id))
    second = app.work.apply_async(("a", 0), idempotency_key="a")
    assert second.get(timeout=20) == 1
    statistics_with(app, twins=1, ended=2, detail=running.tail)
    assert app.redis().get(app.app.backend.get_key_for_task(first.id)) == stored
    assert number(app, "effect:a") == 1
    running.wait_for_log("budgets.twin", first.id, "key=a", "found=done")


def test_a_twin_is_told_of_on_its_span_and_in_its_record(worker, load_app, servers, tmp_path):
    """Beside the key and the scope, which its twin has as well."""
    app = load_app(APP)
    environment = {"SPANS": str(tmp_path), "CELERY_BUDGETS_JSON_LOGS": "1"}
    running = worker(APP, "-Q", "keyed", "-c", "1", env=environment)
    with app.budgets.scope("req"):
        for _ in range(2):
            app.work.apply_async(("a", 0), idempotency_key="a").get(timeout=20)

    def spans():
        found = [span["attributes"] for _, span in json_lines(tmp_path)]
        return [each for each in found if names.OUTCOME in each]

    told = wait_until(lambda: len(spans()) == 2 and spans(), "two spans", detail=running.tail)
    assert {
        (each[names.OUTCOME], each[names.IDEMPOTENCY_KEY], each[names.SCOPE]) for each in told
    } == {("succeeded", "a", "req")}
    assert sorted(each[names.TWIN] for each in told) == [False, True]

    def records():
        lines = [line for line in running.log.splitlines() if line.startswith("{")]
        found = [json.loads(line) for line in lines]
        return [each for each in found if each["event"] == "budgets.call_ended"]

    wait_until(lambda: len(records()) == 2, "two records", detail=running.tail)
    assert [(each["twin"], each["scope"]) for each in records()] == [
        (False, "req"),
        (True, "req"),
    ]


def test_twins_in_canvas_have_results_of_their_own(worker, app):
    """Under the ids that chains and chords have given them; what follows each goes on."""
    worker(APP, "-Q", "keyed", "-c", "2")

    def keyed():
        return app.work.s("a", 0.3).set(idempotency_key="a")

    chains = [chain(keyed(), app.add.s(more)).apply_async() for more in (10, 20)]
    whole = chord([keyed(), keyed(), app.add.s(1, 1)])(app.total.s())
    assert [result.get(timeout=30) for result in chains] == [11, 21]
    assert whole.get(timeout=30) == 1 + 1 + 2
    assert number(app, "effect:a") == 1


@pytest.mark.parametrize("pool", first_of("prefork", "threads"))
def test_what_follows_a_twin_does_not_inherit_the_twin_s_own_limits(
    worker, load_app, servers, pool
):
    """Its call is over, as that of the one that ran."""
    app = load_app(APP)
    running = worker(APP, "-Q", "keyed", "-c", "2", "-P", pool)
    for _ in range(2):
        keyed = app.work.s("a", 0).set(idempotency_key="a")
        assert chain(keyed, app.deadline_of.s()).apply_async().get(timeout=20) is None
    assert number(app, "effect:a") == 1, running.tail()


@pytest.mark.parametrize("limit", first_of("deadline", "expires", "scope"))
def test_a_twin_that_ends_by_a_limit_of_its_own_says_nothing_of_the_one_that_runs(
    worker, load_app, servers, limit
):
    """The first caller gets the value, and so does a later one."""
    app = load_app(APP)
    running = worker(APP, "-Q", "keyed", "-c", "2")
    first = app.hold.apply_async(("a",), idempotency_key="a")
    wait_for(app, "begun:a", detail=running.tail)
    if limit == "scope":
        with app.budgets.scope("away") as scope:
            app.hold.apply_async(("a",), idempotency_key="a")
    else:
        app.hold.apply_async(("a",), idempotency_key="a", **{limit: 1.0})
    wait_until(lambda: app.budgets.statistics().total.twins, "it waits", detail=running.tail)
    if limit == "scope":
        scope.cancel()
    end = "rejected" if limit == "deadline" else "revoked"
    wait_until(
        lambda: app.budgets.statistics().total.outcomes[end], "it ends", timeout=20,
        detail=running.tail,
    )  # fmt: skip
    assert app.app.AsyncResult(first.id).state == "PENDING"
    later = app.hold.apply_async(("a",), idempotency_key="a")
    app.redis().set("go:a", 1)
    assert first.get(timeout=20) == later.get(timeout=20)
    assert number(app, "begun:a") == 1


def test_twins_that_waited_share_a_failure_and_later_ones_run_anew(worker, app):
    """The new one's caller does not get the old failure."""
    running = worker(APP, "-Q", "keyed", "-c", "2")
    results = [app.fail.apply_async(("a", "go"), idempotency_key="a") for _ in range(3)]
    wait_until(lambda: app.budgets.statistics().total.twins >= 2, "two wait", detail=running.tail)
    app.redis().set("go:a", 1)
    for result in results:
        with pytest.raises(ValueError, match="'a', 1"):
            result.get(timeout=20)
    total = statistics_with(app, twins=2, ended=3, detail=running.tail)
    assert total.outcomes["failed"] == 3
    assert number(app, "begun:a") == 1
    assert app.fail.apply_async(("a",), idempotency_key="a").get(timeout=20) == "well"
    assert number(app, "begun:a") == 2


def test_a_retry_of_the_body_s_own_takes_the_lease_again(worker, app):
    """Its twins wait meanwhile, and use up none of the one retry that it has."""
    worker(APP, "-Q", "keyed", "-c", "2")
    results = [app.again.apply_async(("a",), idempotency_key="a") for _ in range(3)]
    assert len({result.get(timeout=20) for result in results}) == 1
    assert number(app, "begun:a") == 2


def test_calls_with_other_keys_tasks_or_none_run(worker, app):
    """A key is one task's."""
    worker(APP, "-Q", "keyed", "-c", "2")
    results = [
        app.work.apply_async(("a", 0), idempotency_key="a"),
        app.work.apply_async(("b", 0), idempotency_key="b"),
        app.silent.apply_async(("a",), idempotency_key="a"),
        app.app.send_task(app.work.name, ("d", 0), idempotency_key="d"),
        app.app.send_task(app.work.name, ("d", 0), idempotency_key="d"),
    ]  # fmt: skip
    results.pop(2)  # it is ignored
    assert [result.get(timeout=20) for result in results] == [1] * 4
    plain = [app.work.delay("c", 0) for _ in range(2)]
    assert sorted(result.get(timeout=20) for result in plain) == [1, 2]
    wait_for(app, "begun:a", 2)


@pytest.mark.slow
def test_a_holder_that_is_killed_is_replaced_after_its_lease(worker, app):
    """Its whole worker goes; the twin that waits runs when the lease has run out."""
    first = worker(APP, "-Q", "keyed", "-c", "2")
    app.hold.apply_async(("a",), idempotency_key="a")
    wait_for(app, "begun:a", detail=first.tail)
    second = worker(APP, "-Q", "keyed", "-c", "2")
    result = app.hold.apply_async(("a",), idempotency_key="a")
    first.kill()
    give_back_what_the_dead_held(app)
    wait_for(app, "begun:a", 2, timeout=40, detail=second.tail)
    app.redis().set("go:a", 1)
    assert result.get(timeout=20) in second.pool_pids()


POINTS = ("before take", "after take", "before done", "after done", "before back", "after back")


@pytest.mark.slow
@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)  # the lines are the lease's
@pytest.mark.parametrize("point", POINTS)
def test_no_call_is_lost_between_two_lines(worker, app, point):
    """SIGKILL of the process at each step of holder and twin; both callers get a result."""
    running = worker(APP, "-Q", "keyed", "-c", "2", env={"DIES_AT": point})
    results = [app.work.apply_async(("a", 0.5), idempotency_key="a") for _ in range(2)]
    assert {result.get(timeout=40) for result in results} == {
        # Its effect is stored before it is noted: only a kill between both repeats it.
        2 if point == "before done" else 1
    }, running.tail()
    assert app.redis().exists(f"died:{point}"), running.tail()


@pytest.mark.slow
@pytest.mark.parametrize("pool", first_of("prefork", "threads"))
def test_a_holder_is_held_to_its_limits_beside_its_twins(worker, load_app, servers, pool):
    """They share its id, and do not hide it from those who end it at the hard limit."""
    app = load_app(APP)
    running = worker(APP, "-Q", "keyed", "-c", "3", "-P", pool)
    limits = {"soft_time_limit": 2.0, "time_limit": 2.5}
    results = [app.deaf.apply_async(("a",), idempotency_key="a", **limits) for _ in range(3)]
    with pytest.raises(TimeLimitExceeded):
        results[0].get(timeout=20)
    app.redis().set("go:a", 1)
    killed = wait_until(
        lambda: app.budgets.statistics().total.outcomes["hard_time_limit"], "it is counted",
        timeout=20, detail=running.tail,
    )  # fmt: skip
    assert killed >= 1
    # A twin that has waited runs then, and nothing is left waiting for the lease for ever.
    fresh = app.app.AsyncResult  # one that has seen the failure keeps it
    wait_until(
        lambda: fresh(results[1].id).state == "SUCCESS", "a twin runs", timeout=20,
        detail=running.tail,
    )  # fmt: skip
    assert number(app, "begun:a") == 2


@pytest.mark.slow
def test_a_frozen_holder_changes_nothing_when_it_thaws(worker, app):
    """Stopped for longer than its lease, it finds that it is another's, and is stopped."""
    running = worker(APP, "-Q", "keyed", "-c", "2")
    app.stubborn.apply_async(("a",), idempotency_key="a")
    wait_for(app, "begun:a", detail=running.tail)
    (holder,) = [call["worker_pid"] for call in running.wait_active()]
    psutil.Process(holder).send_signal(signal.SIGSTOP)
    result = app.stubborn.apply_async(("a",), idempotency_key="a")
    wait_for(app, "begun:a", 2, timeout=30, detail=running.tail)
    psutil.Process(holder).send_signal(signal.SIGCONT)
    running.wait_for_log("budgets.lease_lost", "another has taken it", timeout=20)
    wait_for(app, "stopped:a", timeout=20, detail=running.tail)
    app.redis().set("go:a", 1)
    assert result.get(timeout=20) == "well"


@pytest.mark.slow
def test_a_holder_that_cannot_renew_is_stopped_before_its_lease_ends(worker, load_app, servers):
    """Redis of the keys away: two bodies are never at it, and the call runs when it is back."""
    outage = Outage(servers.backend)
    app = load_app(APP, KEYS_URL=outage.url)
    running = worker(APP, "-Q", "keyed", "-c", "2", env={"KEYS_URL": outage.url})
    result = app.stubborn.apply_async(("a",), idempotency_key="a")
    wait_for(app, "begun:a", detail=running.tail)
    outage.begin()
    running.wait_for_log("budgets.lease_lost", "could not be renewed", timeout=20)
    wait_for(app, "stopped:a", timeout=20, detail=running.tail)
    app.redis().set("go:a", 1)
    outage.end()
    assert result.get(timeout=30) == "well", running.tail()
    assert number(app, "most:a") == 1


def test_a_key_without_a_redis_is_refused_with_the_remedy(load_app, servers):
    """Neither broker nor result backend is one, and no setting names one."""
    app = load_app(APP, CELERY_BROKER_URL="memory://", CELERY_RESULT_BACKEND="cache+memory://")
    with pytest.raises(ConfigurationError, match="set budgets_idempotency_url"):
        app.work.apply_async(("a", 0), idempotency_key="a")


@pytest.mark.parametrize("key", ["", 7, "x" * 1001])
def test_a_key_is_text(load_app, servers, key):
    """Not empty, and not longer than what one would write."""
    with pytest.raises(ValueError, match="must be text of 1 to 1000 characters"):
        load_app(APP).work.apply_async(("a", 0), idempotency_key=key)


def test_acknowledgement_is_the_lane_s_with_a_key_too(worker, load_app, servers):
    """A lane that is not idempotent acknowledges early: half of a body may have run."""
    app = load_app(APP)
    running = worker(APP, "-Q", "once", "-c", "2")
    result = app.hold_once.apply_async(("a",), idempotency_key="a")
    wait_for(app, "begun:a", detail=running.tail)
    assert [call["acknowledged"] for call in running.wait_active()] == [True]
    app.redis().set("go:a", 1)
    result.get(timeout=20)
