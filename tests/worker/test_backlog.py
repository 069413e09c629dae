"""How many messages wait at the broker, as workers tell it and as the broker does."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
import urllib.request
from itertools import cycle
from urllib.parse import urlsplit

import pytest
from kombu import Connection
from kombu.transport.redis import Channel
from redis import Redis

from celery_budgets.sending.remote_control import Inspection
from celery_budgets.telemetry.objectives import Objective
from celery_budgets.worker.backlog.backlog import PERIOD, STALE
from tests.support.apps import Servers
from tests.support.marks import first_of
from tests.support.outage import Outage
from tests.support.waiting import wait_until

APP = "tests.worker.backlog_app"
RABBITMQCTL = shlex.split(os.environ.get("BUDGETS_TEST_RABBITMQCTL", "rabbitmqctl"))
#: Longer than a reading may take to be there.
SOON = STALE
CALLS = 30


@pytest.fixture
def load(load_app, broker_url):
    """Load the app of the tests, without what earlier ones have left at the broker."""
    if broker_url.startswith("amqp"):
        with Connection(broker_url) as connection, connection.channel() as channel:
            for queue in ("busy", "busy.low", "idle", "idle.low"):
                channel.queue_delete(queue)
    return lambda **environment: load_app(APP, **environment)


def messages_at(broker: str, lane: str) -> int:
    """Return how many messages lie at the broker, by its own means."""
    if broker.startswith("redis"):
        with Redis.from_url(broker) as client:
            keys = [lane, *(f"{lane}{Channel.sep}{step}" for step in (3, 6, 9))]
            return sum(client.llen(key) for key in keys)
    host = urlsplit(broker).path[1:]
    listed = subprocess.run(
        [*RABBITMQCTL, "-q", "-p", host, "list_queues", "name", "messages_ready"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip(f"rabbitmqctl: {listed.stderr}")
    rows = [line.split("\t") for line in listed.stdout.splitlines() if "\t" in line]
    ready = dict(rows)
    return sum(int(ready.get(queue, 0)) for queue in (lane, f"{lane}.low"))


def fill(module, *priorities: str | None) -> None:
    """Let one call run for long, and have the others wait behind it."""
    levels = cycle(priorities or [None])
    for _ in range(1 + CALLS):
        level = next(levels)
        module.nap.apply_async((60,), **({} if level is None else {"priority": level}))


POOLS = first_of("prefork", "threads", "gevent")


@pytest.mark.parametrize("pool", POOLS)
def test_the_backlog_is_what_lies_at_the_broker(worker, load, broker_url, pool):
    """What is in the hands of the worker is not in it, but waiting; another lane has none."""
    module = load()
    running = worker(APP, "-P", pool)
    fill(module)
    told = told_of(module, broker_url, "busy", running)
    assert told.backlog == messages_at(broker_url, "busy") > CALLS - 5
    found = module.budgets.concurrency(timeout=5)
    slots = found.lanes["busy"]
    assert slots.active + slots.waiting + told.backlog == 1 + CALLS
    assert found.load("busy") == 1 + CALLS
    assert (found.queues["idle"].backlog, found.queues["idle"].oldest) == (0, 0.0)
    assert found.queues["idle"].drain == 0
    running.kill()


def told_of(module, broker, lane, running):
    """Return the queue of *lane* as soon as what the worker tells is what the broker does."""

    def same():
        queue = module.budgets.concurrency(timeout=5).queues.get(lane)
        known = queue is not None and queue.backlog == messages_at(broker, lane)
        return queue if known and queue.backlog else None

    return wait_until(same, "the backlog is told", timeout=60, interval=0.3, detail=running.tail)


def metrics_of(running, lane):
    """Return what Prometheus would read of the queue of *lane*, by the ends of the names."""
    url = running.wait_for_log("budgets.metrics_served").rpartition("url=")[2].strip()
    with urllib.request.urlopen(url, timeout=5) as page:
        text = page.read().decode()
    pattern = r'^celery_budgets_lane_(\w+)\{lane="(\w+)"(?:,within="(\w+)")?\} (\S+)$'
    found = re.findall(pattern, text, re.MULTILINE)
    mine = [(name, within, value) for name, of, within, value in found if of == lane]
    return {f"{name} {within}".strip(): float(value) for name, within, value in mine}


def test_a_solo_worker_reads_while_its_call_runs(worker, load, broker_url):
    """It answers nobody then, but Prometheus."""
    module = load()
    running = worker(APP, "-P", "solo", env={"CELERY_BUDGETS_METRICS_PORT": "0"})
    fill(module)

    def told() -> dict[str, float] | None:
        found = metrics_of(running, "busy")
        return found if found.get("backlog") == messages_at(broker_url, "busy") else None

    found = wait_until(told, "the backlog is told", timeout=30, detail=running.tail)
    assert found["load"] == 1 + CALLS
    assert found["oldest_seconds"] > 0
    running.kill()


@pytest.mark.parametrize("pool", first_of("prefork", "threads", "gevent", "solo"))
def test_calls_are_counted_against_the_wait_that_is_promised(worker, load, broker_url, pool):
    """Two start within a second; the third waits for the second's two, and is late."""
    module = load()
    running = worker(APP, "-P", pool, env={"CELERY_BUDGETS_METRICS_PORT": "0"})
    for seconds in (0, 2, 0):
        result = module.nap.delay(seconds)
        if not seconds:
            result.get(timeout=20)
    found = metrics_of(running, "busy")
    assert found["slo_seconds"] == 1.0
    assert (found["slo_calls_total true"], found["slo_calls_total false"]) == (2, 1)
    objectives = module.budgets.concurrency(timeout=5).objectives
    assert objectives == {"busy": Objective(1.0, 2 / 3, 2 / 3)}


@pytest.mark.parametrize("level", [None, "low"])
def test_the_backlog_of_all_priorities_is_told(worker, load, broker_url, level):
    """Over the lists of Redis, and with the queue of low priority of RabbitMQ."""
    module = load(PRIORITIES="1")
    running = worker(APP, "-Q", "busy", env={"PRIORITIES": "1"})
    fill(module, "high", level, "low")
    told = told_of(module, broker_url, "busy", running)
    assert told.backlog > CALLS - 5
    running.kill()


def test_the_oldest_is_told(worker, load, broker_url):
    """As the message at the head says on Redis; by what was started last on RabbitMQ."""
    module = load()
    running = worker(APP, "-Q", "busy")
    began = time.time()
    fill(module)
    told = told_of(module, broker_url, "busy", running)
    assert told.oldest_estimated == broker_url.startswith("amqp")
    assert 0 <= told.oldest <= time.time() - began + 0.1
    time_of_first = told.oldest

    def older():
        queue = module.budgets.concurrency(timeout=5).queues["busy"]
        return queue if queue.oldest and queue.oldest > time_of_first + 2 else None

    assert wait_until(older, "it grows older", detail=running.tail).oldest <= time.time() - began
    running.kill()


def lists_measured(url: str) -> int:
    """Return how often the server was asked for the length of a list."""
    with Redis.from_url(url) as client:
        return client.info("commandstats").get("cmdstat_llen", {"calls": 0})["calls"]


@pytest.mark.slow
def test_one_worker_reads_for_all(worker, load, broker_url):
    """The others hear of it, and one of them goes on when it is gone."""
    module = load()
    workers = [worker(APP, "-Q", "idle") for _ in range(3)]

    def told_to(count):
        answers = Inspection(module.app).ask(3.0).by_worker.values()
        known = [answer["lanes"]["idle"]["backlog"] for answer in answers]
        return len(known) == count and all(facts["messages"] == 0 for facts in known)

    wait_until(lambda: told_to(3), "all know", timeout=30)
    time.sleep(2 * PERIOD)  # until it is settled who reads
    if broker_url.startswith("redis"):
        before, began = lists_measured(broker_url), time.time()
        time.sleep(3 * PERIOD)
        after, ended = lists_measured(broker_url), time.time()
        # Four lists each time, as seldom as once per period; one change of readers in between.
        assert 4 <= after - before <= 4 * ((ended - began) / PERIOD + 2)
    workers[0].kill()
    time.sleep(STALE)
    wait_until(lambda: told_to(2), "the others know", timeout=30)


@pytest.mark.slow
def test_what_the_broker_does_not_tell_is_unknown(worker, load, broker_url, servers):
    """Not 0; it is said once, and known again afterwards."""
    outage = Outage(broker_url)
    running = worker(
        APP, "-Q", "idle", env={"CELERY_BUDGETS_METRICS_PORT": "0"},
        servers=Servers(outage.url, servers.backend),
    )  # fmt: skip

    def told() -> bool:
        return "backlog" in metrics_of(running, "idle")

    wait_until(told, "the backlog is told", timeout=SOON, detail=running.tail)
    outage.begin()
    wait_until(lambda: not told(), "it is unknown", timeout=2 * STALE, detail=running.tail)
    running.wait_for_log("budgets.backlog_unknown", timeout=2 * STALE)
    time.sleep(2 * PERIOD)
    outage.end()
    wait_until(told, "it is known again", timeout=60, detail=running.tail)
    assert running.log.count("budgets.backlog_unknown") == 1
    assert running.log.count("budgets.backlog_known") == 1


def test_off_is_off(worker, load_app, redis_url):
    """No reading, and nothing told."""
    module = load_app(APP)
    running = worker(APP, "-Q", "idle", env={"CELERY_BUDGETS_BACKLOG": "false"})
    module.nothing.delay().get(timeout=10)
    before = lists_measured(redis_url)
    time.sleep(2.5)
    assert lists_measured(redis_url) == before
    assert module.budgets.concurrency(timeout=5).queues["idle"].backlog is None
    assert "budgets.backlog" not in running.log


@pytest.mark.slow
def test_reading_a_hundred_thousand_messages_costs_little(redis_url):
    """Less than 1 % of a period, whatever their size: of the worker's CPU, and of the time."""
    from celery_budgets.worker.backlog.redis_queues import RedisQueues

    with Connection(redis_url) as connection, Redis.from_url(redis_url) as client:
        text = '{"body": "%s", "headers": {"budgets_due_at": 1764000000.5}}'
        for _ in range(100):
            client.lpush("many", *([text % ("x" * 100)] * 1000))
        client.lpush("large", *([text % ("x" * 2**20)] * 20))
        queues = RedisQueues(connection.default_channel, 3.0)
        assert queues.read(["many", "large"]) == {
            "many": (100_000, 1764000000.5), "large": (20, 1764000000.5),
        }  # fmt: skip
        began, used = time.perf_counter(), time.process_time()
        for _ in range(50):
            queues.read(["many", "large"])
        took, used = (time.perf_counter() - began) / 50, (time.process_time() - used) / 50
        print(f"a reading of two queues: {1000 * took:.2f} ms, {1000 * used:.2f} ms of CPU")
        assert used < 0.01 * PERIOD
        assert took < 0.02 * PERIOD
        queues.close()
