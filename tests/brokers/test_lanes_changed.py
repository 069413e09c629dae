"""Lanes changed at run time by `celery lanes set`, `pause` and `resume`, on real workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from celery.exceptions import TimeoutError as NoResult

from tests.support.marks import ON_RABBITMQ, first_of
from tests.support.outage import Outage
from tests.support.places import ROOT
from tests.support.waiting import wait_until

APP = "tests.brokers.changing_app"
EACH_POOL = pytest.mark.parametrize("pool", first_of("prefork", "threads"))
# Each broker and each pool once, not every pair: what differs is in one or the other.
_PAIRS = [
    ("redis", "prefork"),
    pytest.param("rabbitmq", "prefork", marks=ON_RABBITMQ),
    pytest.param("redis", "threads", marks=pytest.mark.slow),
    pytest.param("rabbitmq", "gevent", marks=ON_RABBITMQ),
]
EACH_BROKER_AND_POOL = pytest.mark.parametrize(
    ("broker_url", "pool"), _PAIRS[:3], indirect=["broker_url"]
)
EACH_BROKER_AND_GROWING_POOL = pytest.mark.parametrize(
    ("broker_url", "pool"), _PAIRS, indirect=["broker_url"]
)


class Operator:
    """Somebody at a terminal, and what the worker says of itself."""

    def __init__(self, module, servers):
        self.module, self.servers = module, servers

    def lanes(self, *arguments):
        """Run `celery lanes ARGUMENTS` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", APP, "lanes", *arguments],
            cwd=ROOT, env=os.environ | self.servers.environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def done(self, *arguments):
        """Run a command that succeeds, and return what it prints."""
        ended = self.lanes(*arguments)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def control(self, command, **arguments):
        """Send a remote control command, and return what the worker says to it."""
        replies = self.module.app.control.broadcast(
            command, arguments=arguments, reply=True, timeout=10, limit=1
        )
        ((_, answer),) = replies[0].items()
        return answer

    def state(self):
        """Return what the worker answers to `inspect budgets`, if it does."""
        replies = self.module.app.control.broadcast("budgets", reply=True, timeout=2, limit=1)
        return next(iter(replies[0].values())) if replies else None

    def lane(self, name):
        state = self.state()
        return state["lanes"][name] if state else {}

    def send(self, count, key, queue="critic"):
        return [self.module.until_told.apply_async((key,), queue=queue) for _ in range(count)]

    def tell(self, key):
        self.module.app.backend.client.set(key, 1)

    def waits_for(self, running, lane="critic", **facts):
        """Wait until the worker says *facts* of *lane*."""
        wait_until(
            lambda: facts.items() <= self.lane(lane).items(), f"{lane}: {facts}",
            timeout=20, interval=0.1, detail=lambda: f"{self.state()}\n{running.tail()}",
        )  # fmt: skip

    def stays(self, seconds, lane="critic", **facts):
        """See that the worker says *facts* of *lane* for as long as that."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            now = self.lane(lane)
            assert facts.items() <= now.items(), now


@pytest.fixture
def operator(load_app, servers, broker_url):
    """The app and an operator, on each broker in turn; running calls end with the test."""
    made = Operator(load_app(APP), servers)
    yield made
    made.tell("end")


def ready(results):
    wait_until(lambda: all(r.ready() for r in results), "all end", timeout=30, interval=0.1)


@EACH_BROKER_AND_GROWING_POOL
def test_a_raised_limit_gives_the_pool_slots(worker, operator, pool):
    """One lane in its worker: seven run at once instead of two, and none of it is drift."""
    running = worker(APP, "-Q", "critic", "-P", pool)
    sent = operator.send(12, "end")
    operator.waits_for(running, active=2)
    said = operator.done("set", "critic", "--concurrency", "7")
    assert said.endswith(": lane critic: concurrency 7 instead of 2\n")
    assert said.startswith(running.name)
    operator.waits_for(running, active=7, limit=7)
    state = operator.state()
    assert (state["capacity"], state["slots"], state["drift"]) == (7, 7, [])
    if pool == "prefork":
        assert len(running.pool_pids()) == 7
    operator.stays(1.5, active=7)
    operator.tell("end")
    ready(sent)


@pytest.mark.slow
@EACH_BROKER_AND_POOL
def test_a_lowered_limit_lets_running_calls_end(worker, operator, pool):
    """And no more than that start; the broker sends no more than that ahead either."""
    running = worker(APP, "-Q", "file_read", "-P", pool)
    first = operator.send(3, "first", "file_read")
    operator.waits_for(running, "file_read", active=3)
    operator.done("set", "file_read", "--concurrency", "2")
    then = operator.send(6, "end", "file_read")
    operator.stays(0.5, "file_read", active=3, limit=2)
    operator.tell("first")
    ready(first)
    operator.waits_for(running, "file_read", active=2)
    operator.stays(1.5, "file_read", active=2)
    assert operator.lane("file_read")["waiting"] <= 1
    state = operator.state()
    assert (state["capacity"], state["slots"], state["drift"]) == (3, 3, [])
    (stats,) = operator.module.app.control.inspect(timeout=10, limit=1).stats().values()
    assert stats["prefetch_count"] == 2
    operator.tell("end")
    ready(then)


@pytest.mark.slow
@EACH_BROKER_AND_POOL
def test_lanes_of_one_worker_are_changed_one_by_one(worker, operator, pool):
    """The pool grows by what the lane has more, and the other lane keeps its limit."""
    running = worker(APP, "-P", pool)
    sent = operator.send(10, "end") + operator.send(10, "end", "file_read")
    operator.waits_for(running, active=2)
    operator.waits_for(running, "file_read", active=3)
    operator.done("set", "critic", "--concurrency", "6")
    operator.waits_for(running, active=6)
    operator.stays(1.0, "file_read", active=3, limit=3)
    assert operator.state()["slots"] == 9
    operator.done("set", "critic", "--concurrency", "1")
    operator.tell("end")
    ready(sent)
    sent = operator.send(5, "again")
    operator.waits_for(running, active=1)
    operator.stays(1.0, active=1)
    # One runs, and at most one more has been sent ahead while it was recounted.
    assert operator.lane("critic")["waiting"] <= 1
    operator.tell("again")
    ready(sent)


@pytest.mark.slow
def test_a_worker_with_fewer_slots_grows_no_more_than_it_must(worker, operator):
    """Started with -c 2 for five slots: the lane gets its four, and the sum stays out of reach."""
    running = worker(APP, "-c", "2")
    operator.done("set", "critic", "--concurrency", "4")
    assert operator.state()["slots"] == 4
    sent = operator.send(6, "end")
    operator.waits_for(running, active=4)
    operator.tell("end")
    ready(sent)


def test_what_a_worker_refuses(worker, operator):
    """The lane, the numbers, the remedy; and nothing has changed."""
    worker(APP, "-Q", "critic,file_read")
    refused = {
        ("critic", 0): "lane 'critic': concurrency 0: give a whole number of 1 or more",
        ("critic", "8"): "lane 'critic': concurrency '8': give a whole number of 1 or more",
        ("critic", True): "lane 'critic': concurrency True: give a whole number of 1 or more",
        ("critic", None): "lane 'critic': concurrency None: give a whole number of 1 or more",
        ("file_read", 1): ("lane 'file_read': concurrency 1 is below its min (2); give 2 or more"),
        ("critic", 8): (
            "lane 'critic': with concurrency 8 the lanes of this worker add up to 11, above "
            "budgets_global_concurrency (10); give at most 7, lower another lane first, or raise "
            "that setting"
        ),
        ("critik", 3): (
            "lane 'critik' is not known; did you mean 'critic'? known: critic, file_read"
        ),
    }
    for (lane, concurrency), error in refused.items():
        answer = operator.control("lane_limit", lane=lane, concurrency=concurrency)
        assert answer == {"error": error}
    assert operator.lane("critic")["limit"] == 2
    assert operator.control("lane_limit", lane="critic", concurrency=7)["ok"]


@pytest.mark.slow
def test_another_lanes_worker_refuses_only_if_it_is_asked(worker, operator):
    """By its name; otherwise those are told that serve the lane."""
    critic, other = worker(APP, "-Q", "critic"), worker(APP, "-Q", "file_read")
    answers = operator.module.app.control.inspect(timeout=10, limit=2).ping()
    names = {name.partition("@")[0]: name for name in answers}
    said = operator.done("set", "critic", "--concurrency", "3")
    assert said.splitlines() == [f"{names[critic.name]}: lane critic: concurrency 3 instead of 2"]
    named = operator.lanes(
        "set", "critic", "--concurrency", "4", "-d", f"{names[other.name]},{names[critic.name]}"
    )
    assert named.returncode == 1
    assert f"{names[critic.name]}: lane critic: concurrency 4 instead of 3" in named.stdout
    assert named.stderr == (
        f"Error: {names[other.name]}: lane 'critic': this worker does not serve it "
        "(its lanes: file_read); name one that does\n"
    )
    gone = operator.lanes("pause", "critic", "-d", "gone@h")
    assert (gone.returncode, gone.stderr) == (1, "Error: no answer from gone@h\n")


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("-P", "solo"), "start the worker with -P prefork, threads or gevent"),
        (("--autoscale", "2,1"), "start the worker without --autoscale"),
    ],
)
def test_a_pool_that_cannot_have_it_refuses(worker, load_app, servers, arguments, remedy):
    """One call at once, or sized by somebody else."""
    worker(APP, "-Q", "critic", *arguments)
    answer = Operator(load_app(APP), servers).control("lane_limit", lane="critic", concurrency=3)
    assert answer["error"].startswith("lane 'critic': ")
    assert answer["error"].endswith(remedy)


def test_without_a_worker_there_is_nobody_to_tell(load_app, servers):
    """Exit code 1, and the lane's name."""
    ended = Operator(load_app(APP), servers).lanes("pause", "critic", "--timeout", "0.3")
    assert ended.returncode == 1
    assert ended.stderr == "Error: no worker that serves critic answered within 0.3 s\n"


@pytest.mark.slow
@pytest.mark.parametrize("queues", ["critic", "critic,file_read"])
def test_a_reconnect_keeps_limit_and_pause(worker, operator, servers, queues):
    """Both are the worker's, not the connection's."""
    outage = Outage(servers.broker)
    running = worker(APP, "-Q", queues, env={"CELERY_BROKER_URL": outage.url})
    first = operator.send(2, "first")
    operator.waits_for(running, active=2)
    operator.done("set", "critic", "--concurrency", "1")
    operator.done("pause", "critic")
    outage.begin()
    running.wait_for_log("Cannot connect to", timeout=20)
    outage.end()
    then = operator.send(4, "end")
    operator.waits_for(running, paused=["operator"], limit=1, consumed=False)
    operator.tell("first")
    ready(first)
    operator.waits_for(running, active=0)
    operator.stays(1.5, active=0, waiting=0, limit=1)
    operator.done("resume", "critic")
    operator.waits_for(running, active=1)
    # Celery restores its count to the pool's size as calls end.
    wait_until(lambda: operator.lane("critic")["waiting"] <= 1, "few are sent ahead", timeout=10)
    operator.stays(1.0, active=1)
    operator.tell("end")
    ready(then)


@EACH_BROKER_AND_GROWING_POOL
def test_a_paused_lane_starts_nothing_and_loses_nothing(worker, operator, pool):
    """Running calls end, the other lane goes on, what waits runs after the pause."""
    running = worker(APP, "-P", pool, "-c", "2")
    first = operator.send(2, "first")
    operator.waits_for(running, active=2)
    then = operator.send(4, "end")
    # With two slots for five, messages wait in the worker.
    operator.done("set", "critic", "--concurrency", "2")
    said = operator.done("pause", "critic")
    assert said.endswith(": lane critic: paused, 2 running\n")
    operator.tell("first")
    ready(first)
    other = operator.send(2, "first", "file_read")
    ready(other)
    operator.waits_for(running, active=0, waiting=0, paused=["operator"])
    operator.stays(1.0, active=0, waiting=0, paused=["operator"])
    shown = json.loads(operator.done("status", "--json"))
    critic, file_read = shown["lanes"]
    assert critic["alerts"] == [{"level": "warning", "text": "paused by an operator"}]
    assert (critic["paused"], file_read["paused"]) == (True, False)
    assert file_read["alerts"] == []
    assert not any(result.ready() for result in then)
    assert operator.done("resume", "critic").endswith(": lane critic: resumed\n")
    assert operator.done("resume", "critic").endswith(": lane critic: is not paused\n")
    operator.tell("end")
    ready(then)


@EACH_BROKER_AND_GROWING_POOL
def test_a_lane_that_is_paused_and_resumed_at_once_goes_on(worker, operator, pool):
    """Also where the worker waits in a read from the broker all the while."""
    running = worker(APP, "-Q", "critic", "-P", pool)
    for _ in range(3):
        assert "paused" in operator.control("pause_lane", lane="critic")["ok"]
        assert "resumed" in operator.control("resume_lane", lane="critic")["ok"]
    sent = operator.send(4, "end")
    operator.tell("end")
    ready(sent)
    operator.control("pause_lane", lane="critic")
    operator.waits_for(running, paused=["operator"], consumed=False)
    # What kombu says, again and again, where it reads from a queue that it has forgotten.
    assert "undeliverable" not in running.log


@pytest.mark.slow
def test_another_worker_takes_what_a_paused_one_had(worker, operator):
    """It was handed back: nothing waits for the pause to end."""
    paused = worker(APP, "-c", "1")
    first = operator.send(1, "end", "file_read")
    operator.waits_for(paused, "file_read", active=1)
    then = operator.send(2, "end")
    operator.waits_for(paused, waiting=2)
    operator.done("pause", "critic")
    operator.waits_for(paused, waiting=0)
    worker(APP, "-Q", "critic")
    operator.tell("end")
    ready(first + then)


@pytest.mark.slow
def test_deliveries_that_are_counted_stay_in_the_worker(worker, load_app, rabbitmq_url, servers):
    """A quorum queue drops a message that goes back too often: it is kept, and started later."""
    environment = {"QUORUM": "1"}
    operator = Operator(load_app(APP, **environment), servers)
    running = worker(APP, "-c", "1", env=environment)
    first = operator.send(1, "first", "file_read")
    operator.waits_for(running, "file_read", active=1)
    then = operator.send(2, "end")
    operator.waits_for(running, waiting=2)
    operator.done("pause", "critic")
    operator.tell("first")
    ready(first)
    operator.stays(1.5, active=0, waiting=2)
    operator.done("resume", "critic")
    operator.tell("end")
    ready(then)


@pytest.mark.slow
def test_a_consumer_that_somebody_adds_does_not_end_a_pause(worker, operator):
    """It is paused again, and no call goes back and forth meanwhile."""
    running = worker(APP)
    operator.done("pause", "critic")
    sent = operator.send(3, "end")
    operator.control("add_consumer", queue="critic")
    # Celery does what it is told a moment after it has said so, and till then it is paused too.
    running.wait_for_log("Started consuming from critic")
    operator.waits_for(running, consumed=False, waiting=0)
    operator.stays(1.5, active=0, consumed=False)
    assert running.log.count("budgets.handed_back") <= 6
    operator.done("resume", "critic")
    operator.tell("end")
    ready(sent)


@pytest.mark.slow
def test_drift_is_shown_and_ours_is_none(worker, operator):
    """Changes by `celery control` are told; those by `celery lanes` are not."""
    running = worker(APP)

    def drift():
        state = operator.state()
        return state["drift"] if state else None

    operator.done("set", "critic", "--concurrency", "4")
    operator.done("pause", "file_read")
    assert drift() == []
    operator.done("resume", "file_read")
    operator.control("pool_grow", n=1)
    operator.control("add_consumer", queue="more")
    operator.control("cancel_consumer", queue="critic")
    wanted = [
        "8 slots instead of 7",
        "queue more is consumed, and was not at the start",
        "queue critic is not consumed",
    ]
    # Celery does what it is told a moment after it has said so.
    wait_until(lambda: drift() == wanted, "the drift is shown", detail=lambda: str(drift()))
    (stats,) = operator.module.app.control.inspect(timeout=10, limit=1).stats().values()
    assert stats["budgets"]["drift"] == wanted
    for text in wanted:
        running.wait_for_log("budgets.drift", text)
    rows = json.loads(operator.done("status", "--json"))["lanes"]
    alerts = {row["lane"]: [alert["text"] for alert in row["alerts"]] for row in rows}
    assert alerts == {
        "critic": [f"drift: {text}" for text in wanted],
        "file_read": [f"drift: {text}" for text in wanted[:2]],
    }
    operator.control("pool_shrink", n=1)
    operator.control("cancel_consumer", queue="more")
    operator.control("add_consumer", queue="critic")
    running.wait_for_log("budgets.drift_gone")
    wait_until(lambda: drift() == [], "there is none", detail=lambda: str(drift()))


@EACH_POOL
@pytest.mark.parametrize("task", ["waits", pytest.param("joins", marks=pytest.mark.slow)])
def test_a_lane_that_waits_for_itself_is_told_of_once(worker, load_app, servers, pool, task):
    """One slot, and the call in it waits for another of its lane: named, with the remedy."""
    environment = {"LIMITS": '{"critic": 1, "file_read": 3}'}
    module = load_app(APP, **environment)
    running = worker(APP, "-P", pool, env=environment)
    for _ in range(2):
        with pytest.raises(NoResult):
            module.app.tasks[f"{APP}.{task}"].delay(2.5).get(timeout=20)
    line = running.wait_for_log("budgets.lane_waits_for_itself")
    assert f"lane=critic task={APP}.{task} taken=1: " in line
    assert "chain or chord" in line
    assert running.log.count("budgets.lane_waits_for_itself") == 1


@pytest.mark.slow
def test_waiting_for_another_lane_is_no_trouble(worker, load_app, servers):
    """Both lanes are full, and no call waits for one of its own."""
    module = load_app(APP)
    running = worker(APP)
    blocked = [module.until_told.apply_async(("end",), queue="file_read") for _ in range(3)]
    waiting = [module.waits.delay(15, "file_read") for _ in range(2)]
    until = time.monotonic() + 2.5
    wait_until(lambda: time.monotonic() > until, "two looks of the worker")
    module.app.backend.client.set("end", 1)
    ready(blocked + waiting)
    assert "budgets.lane_waits_for_itself" not in running.log
