"""Batches on real workers: order, windows, failures, ways to end, memory and backends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu import Connection
from kombu.exceptions import OperationalError

from celery_budgets import RejectedByBudget
from celery_budgets.units import MIB
from tests.brokers.gate import waiting_in
from tests.support.apps import Servers
from tests.support.marks import first_of
from tests.support.places import ROOT
from tests.support.waiting import wait_until

APP = "tests.worker.batch_app"
PROGRAM = "tests.worker.batch_program"
QUEUE = "eight"


@pytest.fixture
def app(load_app, servers, broker_url):
    """The app of the tests, on each broker in turn, without what an earlier test left there."""
    app = load_app(APP)
    with Connection(app.app.conf.broker_url) as connection, connection.channel() as channel:
        channel.queue_delete(QUEUE)
    return app


def start(worker, *arguments, **options):
    return worker(APP, "-Q", QUEUE, *arguments, **options)


def outcomes(app):
    return app.budgets.statistics().total.outcomes


def test_results_come_in_order_with_their_failures(worker, app):
    """Each with its place, its task, and its value or its error; the summary adds them up."""
    start(worker)
    batch = app.budgets.batch(
        (app.square.s(-1 if number % 10 == 3 else number) for number in range(60)),
        max_in_flight=8,
    )
    items = list(batch)
    assert [item.index for item in items] == list(range(60))
    assert {item.task for item in items} == {app.square.name}
    for item in items:
        if item.index % 10 == 3:
            assert isinstance(item.error, ValueError)
            assert (item.ok, item.value) == (False, None)
        else:
            assert (item.ok, item.value, item.error) == (True, item.index**2, None)
    assert (batch.summary.succeeded, batch.summary.failed, batch.summary.unread) == (54, 6, 0)
    assert [item.index for item in batch.summary.failures] == [3, 13, 23, 33, 43, 53]
    assert str(batch.summary) == "54 succeeded, 6 failed (6 ValueError)"
    total = wait_until(
        lambda: (found := batch.scope.statistics().total).total == 60 and found, "60 are counted"
    )
    assert total.outcomes == {"succeeded": 54, "failed": 6}


@pytest.mark.slow
def test_finished_calls_behind_a_slow_one_are_bounded(worker, app):
    """Four unfinished, and four that have ended and wait: not one more is sent."""
    start(worker)
    sent, told = [], []

    def signatures():
        for number in range(40):
            sent.append(number)
            yield app.nap.s(2.0 if number == 0 else 0.0)

    batch = app.budgets.batch(signatures(), max_in_flight=4, on_progress=told.append, total=40)
    items = iter(batch)
    assert next(items).index == 0
    assert len(sent) == 8  # two windows
    assert [item.index for item in items] == list(range(1, 40))
    assert max(progress.in_flight for progress in told) == 4
    assert told[-1] == (40, 0, 0, 40)


@pytest.mark.parametrize("calls", first_of(7, 1000))
def test_after_a_failure_it_can_stop(worker, app, calls):
    """Nothing more is sent, what waits is revoked, and all that was sent has its item.

    Also where all of it was sent already: 7 calls fit into the window.
    """
    start(worker, "-c", "1")
    batch = app.budgets.batch(
        (app.square.s(-1) if number == 2 else app.nap.s(0.2) for number in range(calls)),
        max_in_flight=8, on_error="stop",
    )  # fmt: skip
    items = list(batch)
    assert len(items) <= 16
    assert isinstance(items[2].error, ValueError)
    assert batch.summary.errors["TaskRevokedError"] >= 1
    assert waiting_in(app, QUEUE) == 0
    assert all(item.ok or isinstance(item.error, ValueError | TaskRevokedError) for item in items)


def read_one(batch):
    for _ in batch:
        break


def fail_at_the_first(batch):
    for item in batch:
        raise KeyError(item.index)


def close(batch):
    items = iter(batch)
    next(items)
    items.close()


@pytest.mark.parametrize("end", first_of(read_one, fail_at_the_first, close))
def test_ending_early_leaves_nothing_queued_behind(worker, app, end):
    """Those that wait are revoked when the worker comes to them; those that run go on."""
    running = start(worker, "-c", "2")
    batch = app.budgets.batch((app.nap.s(0.3) for _ in range(1000)), max_in_flight=30)
    with contextlib.suppress(KeyError):
        end(batch)
    assert batch.summary.unread >= 28
    wait_until(lambda: outcomes(app).total() >= 30, "all end", timeout=20, detail=running.tail)
    ended = outcomes(app)
    assert ended["succeeded"] + ended["revoked"] == ended.total()
    assert ended["succeeded"] <= 6
    assert waiting_in(app, QUEUE) == 0


@pytest.mark.slow
def test_ending_early_can_wait_for_what_runs(worker, app):
    """When close returns, nothing of the batch is left at all."""
    running = start(worker, "-c", "2")
    batch = app.budgets.batch(
        (app.nap.s(0.5) for _ in range(1000)), max_in_flight=10, on_close="wait"
    )
    close(batch)
    assert waiting_in(app, QUEUE) == 0
    wait_until(lambda: outcomes(app).total() >= 10, "ten ends", detail=running.tail)
    assert app.budgets.concurrency().total.active == 0


def test_plain_tasks_are_revoked_too(worker, app):
    """By their ids: their worker does not look at scopes."""
    running = start(worker, "-c", "1")
    batch = app.budgets.batch((app.plain.s(0.3) for _ in range(1000)), max_in_flight=10)
    items = iter(batch)
    assert next(items).value == 0.3
    items.close()
    running.wait_for_log("Discarding revoked task", timeout=20)
    wait_until(lambda: waiting_in(app, QUEUE) == 0, "an empty queue", detail=running.tail)
    assert running.log.count("succeeded in") <= 5


def test_a_result_that_never_comes_is_given_up(app):
    """No worker: each call has failed after its time, and the batch ends."""
    batch = app.budgets.batch([app.square.s(1), app.square.s(2)], timeout=0.5)
    assert [type(item.error) for item in batch] == [CeleryTimeoutError] * 2
    assert batch.summary.failed == 2


def test_a_scope_around_it_holds_for_it(worker, app):
    """Its calls are those of the scope, and what that rejects is raised to the reader."""
    start(worker)
    read = []
    with app.budgets.scope("req", max_calls=5) as scope:
        batch = app.budgets.batch((app.square.s(n) for n in range(50)), max_in_flight=2)
        with pytest.raises(RejectedByBudget):
            read.extend(item.index for item in batch)
    assert scope.sent == 5
    assert read == list(range(len(read)))
    wait_until(lambda: scope.statistics().total.total == 5, "five are counted")


def test_twins_in_one_batch_share_a_result(worker, app):
    """The second one finds what is there already; forgetting leaves it to the others."""
    start(worker)
    keyed = [app.square.s(3).set(idempotency_key="three") for _ in range(6)]
    batch = app.budgets.batch(keyed, max_in_flight=2, forget=True)
    items = list(batch)
    assert [item.value for item in items] == [9] * 6
    assert len({item.task_id for item in items}) == 1
    assert app.app.AsyncResult(items[0].task_id).state == "SUCCESS"


@pytest.mark.slow
def test_results_can_be_forgotten_as_they_are_read(worker, app):
    start(worker)
    items = list(app.budgets.batch([app.square.s(2)] * 5, forget=True))
    assert [item.value for item in items] == [4] * 5
    assert {app.app.AsyncResult(item.task_id).state for item in items} == {"PENDING"}


@pytest.mark.slow
def test_a_backend_that_cannot_push_is_asked(worker, load_app, servers, tmp_path):
    """Results in files."""
    results = f"file://{tmp_path}"
    app = load_app(APP, RESULTS=results, CELERY_RESULT_BACKEND=results)
    assert not getattr(app.app.backend, "is_async", False)
    running = start(worker, env={"RESULTS": results, "CELERY_RESULT_BACKEND": results})
    items = list(app.budgets.batch((app.square.s(n) for n in range(30)), max_in_flight=5))
    assert [item.value for item in items] == [n * n for n in range(30)], running.tail()


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_a_backend_of_messages_pushes(worker, load_app, rabbitmq_url):
    """Results by RPC."""
    servers = Servers(broker=rabbitmq_url, backend="rpc://")
    app = load_app(APP, CELERY_RESULT_BACKEND="rpc://")
    start(worker, servers=servers)
    items = list(app.budgets.batch((app.square.s(n) for n in range(30)), max_in_flight=5))
    assert [item.value for item in items] == [n * n for n in range(30)]


def test_a_broker_that_is_away_hides_neither_the_reader_s_error_nor_leaves_results_pending(
    load_app, servers, monkeypatch, caplog
):
    """What was sent cannot be revoked: that is logged, and nothing is waited for any more."""
    app = load_app(APP)

    def fail(*_, **__):
        raise OperationalError("away")

    def progress(_):
        raise KeyError("the reader's own")

    batch = app.budgets.batch([app.square.s(1)] * 5, max_in_flight=5, on_progress=progress)
    monkeypatch.setattr(batch.scope, "cancel", fail)
    with pytest.raises(KeyError, match="the reader's own"):
        list(batch)
    assert not any(app.app.backend._pending_results)
    assert "budgets.batch_not_revoked" in caplog.text


def test_what_makes_no_sense_is_refused(load_app, servers):
    app = load_app(APP)
    for options, words in (
        ({"max_in_flight": 0}, "max_in_flight 0 must be 1 or more"),
        ({"on_error": "raise"}, "on_error 'raise' is not one of continue, stop"),
        ({"on_close": "kill"}, "on_close 'kill' is not one of leave, wait"),
        ({"timeout": "soon"}, "'soon' is not a duration"),
    ):
        with pytest.raises(ValueError, match=words):
            app.budgets.batch([], **options)
    for signature, error, words in (
        (app.square, TypeError, "give signatures"),
        (app.silent.s(), ValueError, "ignores its result"),
        (group(app.square.s(1), app.square.s(2)), TypeError, "has no single result"),
        (chain(app.square.s(1), app.silent.si()), ValueError, "ignores its result"),
        (chain(app.square.s(1), chord([app.square.s()], app.silent.si())), ValueError, "ignores"),
        (chain(app.square.s(1), group(app.square.s(), app.square.s())), TypeError, "no single"),
    ):
        with pytest.raises(error, match=words):
            list(app.budgets.batch([signature]))
    batch = app.budgets.batch([])
    assert list(batch) == []
    with pytest.raises(RuntimeError, match="sent once"):
        iter(batch)


def program(servers, *arguments):
    """The command and the options of a program of its own that reads a batch."""
    command = [sys.executable, "-m", PROGRAM, *map(str, arguments)]
    environment = os.environ | servers.environment | {"PYTHONPATH": str(ROOT)}
    return {"args": command, "env": environment, "cwd": ROOT, "text": True}


@pytest.fixture
def apart(redis_database):
    """A broker, and a database with results alone."""
    return Servers(broker=redis_database(), backend=redis_database())


@pytest.mark.slow
def test_its_memory_does_not_grow_with_its_length(worker, apart):
    """200 calls and 3,000 over a lane of eight, each in a process of its own.

    3,000 because a machine with two cores takes about 15 s for them; by hand 20,000 took 60 s,
    with 3 MB more than 200 at the highest and never more than 64 unfinished.
    """
    running = start(worker, servers=apart)
    told = {}
    for calls in (200, 3000):
        done = subprocess.run(
            **program(apart, calls, 64, 0), capture_output=True, timeout=170, check=False
        )
        assert done.returncode == 0, done.stderr + running.tail()
        told[calls] = json.loads(done.stdout.splitlines()[-1])
        assert (told[calls]["read"], told[calls]["in_order"]) == (calls, True)
        assert told[calls]["most_in_flight"] == 64
        # As the server sees it: sent, and without a result.
        assert 0 < told[calls]["most_unfinished"] <= 64
    grown = told[3000]["peak_bytes"] - told[200]["peak_bytes"]
    print(f"{told[3000]['seconds']:.1f} s for 3,000; {grown / MIB:.1f} MiB more than for 200")
    assert grown < 20_000_000


def test_ctrl_c_leaves_nothing_queued_behind(worker, app, servers):
    """SIGINT to a real process in the middle of a batch; what runs ends, what waits is revoked."""
    running = start(worker, "-c", "2")
    with subprocess.Popen(
        **program(servers, 10_000, 40, 0.2), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as reader:
        assert reader.stdout.readline() == "reading\n"
        reader.send_signal(signal.SIGINT)
        try:
            output, errors = reader.communicate(timeout=30)
        finally:
            reader.kill()
    assert reader.returncode == 0, errors
    told = json.loads(output.splitlines()[-1])
    assert told["read"] + told["unread"] < 200
    wait_until(lambda: waiting_in(app, QUEUE) == 0, "an empty queue", detail=running.tail)
    # All that was sent has ended: read, on its way then, or revoked.
    total = told["read"] + told["unread"]
    wait_until(lambda: outcomes(app).total() >= total, "all end", detail=running.tail)
    ended = outcomes(app)
    assert ended["revoked"] >= 20, ended
    assert ended["succeeded"] + ended["revoked"] == ended.total()
