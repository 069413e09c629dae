"""A budgeted task behaves as a plain Celery task: one app in two forms, side by side.

Each scenario is run on both, with a real worker each, and must give the same. The budgeted app
has workers of two lanes only, so whatever Celery itself sends has to find its way there too.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from celery import VERSION, chain, chord, group
from celery.exceptions import ChordError
from kombu import Connection

from celery_budgets.model.lanes import DEFAULT_LANES
from tests.support.apps import Servers, fresh_app
from tests.support.marks import ON_RABBITMQ
from tests.support.waiting import wait_until
from tests.support.workers import Workers

APP = "tests.worker.twin_app"
TWINS = ("plain", "budgeted")
#: Longest that any result may take, seconds.
SOON = 30
#: What plain Celery before 5.7 does not do, or not each time.
since_celery_57 = pytest.mark.skipif(VERSION < (5, 7), reason="Celery itself does so since 5.7")


@pytest.fixture(scope="module", params=["redis", pytest.param("rabbitmq", marks=ON_RABBITMQ)])
def servers(request, redis_database):
    """Each broker in turn, for the whole module; results are kept in Redis."""
    backend = redis_database()
    if request.param == "redis":
        yield Servers(broker=backend, backend=backend)
        return
    broker = request.getfixturevalue("rabbitmq_server")
    yield Servers(broker=broker, backend=backend)
    with Connection(broker) as connection, connection.channel() as channel:
        for queue in ("celery", *(lane.queue for lane in DEFAULT_LANES)):
            channel.queue_delete(queue)


@pytest.fixture(scope="module")
def twins(servers, tmp_path_factory):
    """Both forms of the app, each with its worker."""
    workers = Workers(servers, tmp_path_factory.mktemp("twins"))
    queues = {"plain": ("-Q", "celery"), "budgeted": ("-Q", "file_read,tool_call")}
    started = [
        workers(APP, *queues[twin], "-c", "3", ready=False, env={"TWIN": twin}) for twin in TWINS
    ]
    for running in started:
        running.wait_ready()
    try:
        with (
            fresh_app(APP, servers, {"TWIN": "plain"}) as plain,
            fresh_app(APP, servers, {"TWIN": "budgeted"}) as budgeted,
        ):
            assert (plain.BUDGETED, budgeted.BUDGETED) == (False, True)
            yield plain, budgeted
    finally:
        workers.close()


def ended(result):
    """Return how a call ended, in values that can be compared: all but ids and times."""
    value = result.get(timeout=SOON, propagate=False)
    seen = {"state": result.state, "value": value, "traceback": result.traceback}
    if isinstance(value, BaseException):
        seen["value"] = (type(value).__name__, value.args)
        # Frames of this package may stand in it; the body and the error must.
        seen["traceback"] = bool(result.traceback) and [
            line.strip() for line in result.traceback.splitlines() if "twin_app" in line
        ] + result.traceback.splitlines()[-1:]  # fmt: skip
    return seen


def results(app):
    """Plain results of both kinds: a value, none, and one that nobody keeps."""
    ignored = app.nothing.delay()
    per_call = app.add.apply_async((1, 1), ignore_result=True)
    wait_until(lambda: "after_return SUCCESS" in app.told(per_call.id), "the ignored call ends")
    wait_until(lambda: "after_return SUCCESS" in app.told(ignored.id), "the ignored task ends")
    return [
        ended(app.add.delay(2, 3)),
        ended(app.add.delay("a", y="b")),
        ended(app.add.apply_async(([1], [2]))),
        *kept(ignored), *kept(per_call),
    ]  # fmt: skip


def kept(result):
    """Return what is stored of a call whose result is ignored: before 5.7 that it has started."""
    # Not which process and host it started on, which are the twins' own.
    value = sorted(result.result) if result.state == "STARTED" else result.result
    return result.state, value


def errors(app):
    """Type, arguments and traceback of what a body raises, and of wrong arguments."""
    return [
        ended(app.fail.delay("ValueError", "boom", 5)),
        ended(app.fail.delay("LookupError")),  # one that the task says it throws
        ended(app.fail.delay("Odd", "a", {"b": [1]})),
        ended(app.app.send_task("add", (1, 2, 3))),
    ]


def rejecting(app):
    """`raise Reject` is an end, with a state."""
    return ended(app.end.delay("reject"))


def ignoring(app):
    """`raise Ignore` keeps the state that was there."""
    result = app.end.delay("ignore")
    wait_until(lambda: "task_postrun" in app.signalled(result.id), "the call ends")
    return (result.state, app.told(result.id))


def retries(app):
    """self.retry, autoretry_for, and both ways of giving up."""
    return [
        ended(app.again.delay(0)),
        ended(app.again.delay(2)),
        ended(app.again.delay(9, "the cause")),
        (ended(app.again.delay(9))["state"], ended(app.again.delay(9))["value"][0]),
        ended(app.automatic.delay(2)),
        ended(app.automatic.delay(9)),
        ended(app.again.apply_async((2, "x"), retries=1)),
    ]


def hooks_and_signals(app):
    """Hooks of the task and signals: the same ones, the same number of times."""
    attempts = {
        app.add.delay(2, 3): 1,
        app.fail.delay("Odd", "x"): 1,
        app.again.delay(1): 2,
        app.again.delay(9): 4,  # the first and max_retries=3
    }
    for result, times in attempts.items():
        result.get(timeout=SOON, propagate=False)
        last = partial(_count, app, result.id, "task_postrun", times)
        wait_until(last, "the last signal of each attempt", timeout=SOON)
    # Sorted: a retry may start in one process before the attempt before it ends in another.
    return [(sorted(app.told(result.id)), sorted(app.signalled(result.id))) for result in attempts]


def _count(app, task_id, signal, times):
    return app.signalled(task_id).count(signal) == times


def chains(app):
    """Values and errors go down a chain; what comes after an error does not run."""
    broken = chain(app.add.s(1, 2), app.fail.si("Odd", "mid"), app.add.s(3)).apply_async()
    seen = [
        ended(chain(app.add.s(1, 2), app.add.s(3), app.add.s(4)).apply_async()),
        ended((app.add.s(1, 2) | app.again.s()).apply_async()),
        ended((app.add.s(1, 1) | group(app.add.s(1), app.add.s(2)) | app.total.s()).apply_async()),
        ended(app.become.delay(5)),
        ended(broken.parent),
        broken.parent.parent.get(timeout=SOON),
    ]
    return [*seen, broken.state]


def groups(app):
    """In order, also where one fails."""
    fine = group(app.add.s(number, number) for number in range(5)).apply_async()
    broken = group([app.add.s(1, 1), app.fail.s("Odd", "one of them"), app.add.s(2, 2)])()
    return [
        fine.get(timeout=SOON),
        [ended(result) for result in broken.results],
        (broken.join(timeout=SOON, propagate=False)[::2], broken.failed(), fine.successful()),
    ]


def chords(app):
    """The body gets the values in order, or a ChordError that names the call that failed."""
    fine = chord([app.add.s(number, 1) for number in range(6)], app.total.s()).apply_async()
    nested = chord([chord([app.add.s(1, 1), app.add.s(2, 2)], app.total.s()), app.add.s(3, 3)])(
        app.total.s()
    )
    broken = chord([app.add.s(1, 1), app.fail.s("Odd", "in the header")], app.total.s())()
    value = broken.get(timeout=SOON, propagate=False)
    assert isinstance(value, ChordError)
    return [
        fine.get(timeout=SOON),
        nested.get(timeout=SOON),
        (broken.state, str(value).partition(" raised ")[2]),
    ]


def links(app):
    """Link and link_error, on a call, in a chain and on a chord's body."""
    keys = [uuid.uuid4().hex for _ in range(4)]
    app.add.apply_async((2, 3), link=app.callback.s(keys[0]), link_error=app.errback.s(keys[0]))
    app.fail.apply_async(
        ("Odd", "linked"), link=app.callback.s(keys[1]), link_error=app.errback.s(keys[1])
    )
    (app.add.s(1, 2) | app.fail.si("Odd", "chained")).on_error(app.errback.s(keys[2])).delay()
    chord([app.fail.s("Odd", "in the header")], app.total.s().on_error(app.errback.s(keys[3])))()
    for key in keys:
        wait_until(lambda: app.called(key), "the link is called", timeout=SOON)  # noqa: B023
    seen = [app.called(key) for key in keys]
    # The message of the last one has the id of the call that failed in it.
    return [*seen[:3], [line.split()[:2] for line in seen[3]]]


def options(app):
    """What apply_async may say arrives in self.request."""
    task_id = uuid.uuid4().hex
    later = datetime.now(UTC) + timedelta(seconds=0.2)
    plain = app.who.apply_async((1,), {"x": 2}, task_id=task_id)
    assert plain.id == task_id
    told = app.who.apply_async(
        headers={"mine": "yes"}, shadow="nick", expires=600, eta=later, priority=5,
        time_limit=40, soft_time_limit=30, correlation_id="c",
    )  # fmt: skip
    seen = []
    for result in (plain, told):
        fields = result.get(timeout=SOON)
        assert fields.pop("id") == fields.pop("root_id") == result.id
        assert bool(fields.pop("eta")) is bool(fields["expires"]) is (result is told)
        fields["correlation_id"] = fields["correlation_id"] in (result.id, "c")
        fields["expires"] = bool(fields["expires"])
        seen.append(fields)
    return seen


def extended_results(app):
    """result_extended: what the backend keeps beside the value."""
    result = app.add.delay(2, y=3)
    result.get(timeout=SOON)
    return (result.name, result.args, result.kwargs, result.retries, bool(result.worker))


def eta(app):
    """A countdown is kept; a time that is past is now."""
    sent = datetime.now(UTC)
    soon = app.progress.apply_async(countdown=0.5)
    soon.get(timeout=SOON)
    waited = datetime.now(UTC) - sent
    past = app.add.apply_async((1, 2), eta=sent - timedelta(hours=1))
    return [waited >= timedelta(seconds=0.5), ended(past)]


def expiry(app):
    """An expired call does not run, and says so."""
    expired = app.add.apply_async((1, 2), expires=datetime.now(UTC) - timedelta(seconds=10))
    seen = ended(expired)
    wait_until(lambda: app.signalled(expired.id), "it is announced as revoked", timeout=SOON)
    return [seen, app.told(expired.id), app.signalled(expired.id)]


def revoking(app):
    """Before it runs, and in the middle; the worker goes on after both."""
    waiting = app.add.apply_async((1, 2), countdown=3600)
    running = app.nap.delay(60)
    wait_until(lambda: running.state == "STARTED", "the nap starts", timeout=SOON)
    app.app.control.revoke(running.id, terminate=True)
    app.app.control.revoke(waiting.id, terminate=True)
    wait_until(lambda: waiting.state == "REVOKED", "the waiting call is revoked", timeout=SOON)
    seen = [ended(running), ended(waiting), app.told(waiting.id)]
    return [*seen, ended(app.add.delay(1, 1))["value"]]


def progress(app):
    """update_state is seen while the call runs."""
    return ended(app.progress.delay())


def at_home(app):
    """Called directly or eagerly, without any worker."""
    eager = app.who.apply((1,), {"x": 2}, headers={"mine": "yes"}).get()
    direct = app.who(1, x=2)
    assert eager.pop("id")
    eager.pop("root_id")
    return [
        app.add(2, 3),
        direct,
        eager,
        ended(app.add.apply((2, 3))),
        ended(app.fail.apply(("ValueError", "at home"))),
        ended(app.again.apply((2,))),
        ended(app.again.apply((9, "cause"))),
        ended(app.automatic.apply((2,))),
        ended((app.add.s(1, 2) | app.add.s(3)).apply()),
        group([app.add.s(1, 1), app.add.s(2, 2)]).apply().get(),
        ended(chord([app.add.s(1, 1), app.add.s(2, 2)], app.total.s()).apply()),
    ]


def leaving(app):
    """A body that raises SystemExit; Celery takes up to 5 s until the process is replaced."""
    return ended(app.end.delay("exit"))["state"]


SCENARIOS = [
    results, errors, ignoring, retries, hooks_and_signals, chains, groups, chords, links, options,
    extended_results, eta, expiry, progress, at_home,
    *(pytest.param(scenario, marks=since_celery_57) for scenario in (rejecting, revoking, leaving)),
]  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_budgeted_task_does_as_a_plain_one(twins, scenario):
    """Each scenario says in its first line what is compared."""
    plain, budgeted = twins
    expected = scenario(plain)
    assert scenario(budgeted) == expected


def test_the_twins_are_what_they_seem(twins):
    """One is plain Celery on Celery's own queue, the other runs in its lanes."""
    plain, budgeted = twins
    assert plain.app.conf.task_default_queue == "celery"
    assert not hasattr(plain.add, "budget_in")
    assert budgeted.add.home().name == "file_read"
    assert budgeted.app.conf.task_default_queue == "tool_call"
