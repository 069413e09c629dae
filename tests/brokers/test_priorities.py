"""High before normal before low, in the same order on both brokers, and low is not starved."""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise

import pytest
from kombu import Connection, Queue

from celery_budgets import ConfigurationError
from tests.support.marks import first_of
from tests.support.spans import most_at_once
from tests.support.waiting import wait_until

APP = "tests.brokers.together_app"
ENVIRONMENT = {"PRIORITIES": "1"}
LEVELS = ("high", "normal", "low")


@pytest.fixture
def together(load_app, servers, broker_url):
    """The app of the tests, with priorities, on each broker in turn."""
    return load_app(APP, **ENVIRONMENT)


def ran(app):
    """Return the names of the calls that have run, in their order."""
    return [name.decode() for name in app.app.backend.client.lrange("ran", 0, -1)]


@pytest.mark.slow
@pytest.mark.parametrize("queues", [("-Q", "forecast_model"), ()], ids=["lane", "all"])
def test_a_thousand_that_wait_run_by_priority_and_then_in_order(worker, together, queues):
    """One slot; sent in any order, before the worker is there."""
    chance = random.Random(1000)
    sent = [(level, f"{level} {i}") for i, level in enumerate(chance.choices(LEVELS, k=1000))]
    for level, name in sent:
        together.note.apply_async((name,), queue="forecast_model", priority=level)
    running = worker(APP, *queues, env=ENVIRONMENT)
    wait_until(lambda: len(ran(together)) == 1000, "all", timeout=60, detail=running.tail)
    assert ran(together) == [name for level in LEVELS for of, name in sent if of == level]


def test_what_names_no_priority_is_normal_by_its_own_name_too(worker, together):
    """A call without one, one by its name alone, and a number of the broker's."""
    for priority in ("low", None, "high"):
        options = {} if priority is None else {"priority": priority}
        together.note.apply_async((str(priority),), queue="forecast_model", **options)
    by_name = "tests.brokers.together_app.note"
    together.app.send_task(by_name, ("name",), queue="forecast_model")
    together.app.send_task(by_name, ("named high",), queue="forecast_model", priority="high")
    running = worker(APP, "-Q", "forecast_model", env=ENVIRONMENT)
    wait_until(lambda: len(ran(together)) == 5, "all", detail=running.tail)
    assert ran(together) == ["high", "named high", "None", "name", "low"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "lane", ["forecast_model", pytest.param("file_write", marks=pytest.mark.slow)]
)
def test_low_calls_move_while_others_keep_coming(worker, together, lane):
    """Within the aging bound, late acknowledged or early; and only one at a time."""
    running = worker(APP, "-Q", lane, env=ENVIRONMENT | {"AGING": "1"})
    slots = together.LIMITS[lane]
    low, high, waiting = [], [], deque()

    def flooded():
        while waiting and waiting[0].ready():
            waiting.popleft()
        # Some seconds ahead, however slowly this process gets on.
        while len(waiting) < 30 * slots:
            waiting.append(together.occupy.apply_async((0.1,), queue=lane, priority="high"))
            high.append(waiting[-1])
        return low and all(result.ready() for result in low)

    flooded()
    low += [together.occupy.apply_async((0.01,), queue=lane, priority="low") for _ in range(3)]
    wait_until(flooded, "low calls run under a flood", timeout=30, detail=running.tail)
    wait_until(lambda: all(r.ready() for r in high), "the flood ends", timeout=60)
    starts = sorted(result.get()[0] for result in low)
    print(f"{lane}: low calls {[round(b - a, 2) for a, b in pairwise(starts)]} s apart")
    before = [sum(result.get()[0] < start for result in high) for start in starts]
    assert before[0] < before[1] < before[2], "one low call at a time"


@pytest.mark.slow
def test_an_idle_lane_runs_its_low_calls_at_full_speed(worker, together):
    """All slots of the lane, one after the other, and others overtake them at once."""
    running = worker(APP, env=ENVIRONMENT)
    low = [
        together.occupy.apply_async((0.05,), queue="tool_call", priority="low") for _ in range(480)
    ]
    wait_until(lambda: low[20].ready(), "low calls run", detail=running.tail)
    high = together.occupy.apply_async((0.0,), queue="tool_call", priority="high")
    began, _ = high.get(timeout=10)
    assert began < max(result.get(timeout=30)[0] for result in low)
    assert most_at_once([result.get() for result in low]) == 8


def test_a_retry_keeps_its_priority(worker, together):
    """Low goes back to low; nothing of it ends up among the others."""
    running = worker(APP, "-Q", "forecast_model", env=ENVIRONMENT)
    results = [
        together.once_more.apply_async((level,), queue="forecast_model", priority=level)
        for level in LEVELS
    ]
    wait_until(lambda: all(r.ready() for r in results), "all end", detail=running.tail)
    numbers = {result.get()[0] for result in results}
    assert len(numbers) == 3
    assert all(first == second for first, second in (result.get() for result in results))


def test_a_word_that_is_none_and_an_app_without_priorities(load_app, redis_url):
    """An error that says what there is, and how it is had."""
    app = load_app(APP, **ENVIRONMENT)
    with pytest.raises(ConfigurationError, match="'hihg' is not known; did you mean 'high'"):
        app.note.apply_async(("x",), priority="hihg")
    plain = load_app(APP, PRIORITIES="0")
    with pytest.raises(ConfigurationError, match="set budgets_priorities = True"):
        plain.note.apply_async(("x",), priority="high")


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_a_queue_that_has_no_priorities_is_refused_with_the_remedy(
    worker, load_app, servers, rabbitmq_url
):
    """It exists at the broker from before."""
    with Connection(rabbitmq_url) as connection, connection.channel() as channel:
        Queue("critic", routing_key="critic")(channel).declare()
    running = worker(APP, "-Q", "critic", env=ENVIRONMENT, ready=False)
    assert running.wait_exit() == 1
    assert "queue 'critic' exists at the broker without x-max-priority 9" in running.log
    assert "rabbitmqctl delete_queue critic" in running.log


@pytest.mark.rabbitmq
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x-queue-type": "quorum"}, "queue 'critic': a quorum queue serves by no such"),
        ({}, "queue 'critic': budgets_priorities needs queue_arguments="),
        ({"x-max-priority": 3}, "it has 3"),
    ],
)
def test_a_declared_queue_that_has_no_priorities_is_refused(
    rabbitmq_url, app_of, arguments, message
):
    """Before anything is sent."""
    with pytest.raises(ConfigurationError, match=message):
        app_of(rabbitmq_url, Queue("critic", routing_key="critic", queue_arguments=arguments))


@pytest.fixture
def app_of():
    """Make an app with priorities and one declared queue, and use it."""
    from celery import Celery

    from celery_budgets import Budgets

    def make(broker, queue):
        app = Celery("declared", broker=broker, set_as_current=False)
        app.conf.budgets_priorities = True
        app.conf.task_queues = [queue]
        app.conf.get("timezone")  # configured: what is wrong is said at once
        Budgets(app)

    return make


@pytest.mark.parametrize(
    ("environment", "message"),
    first_of(
        ({"PREFETCH": "4"}, "worker_prefetch_multiplier 4 defeats budgets_priorities"),
        ({"STEPS": "[0, 5]"}, "priority_steps'] [0, 5] defeats budgets_priorities"),
    ),
)
def test_settings_that_defeat_priorities_are_refused(worker, redis_url, environment, message):
    """At the start of the worker, with the remedy."""
    running = worker(APP, "-Q", "critic", env=ENVIRONMENT | environment, ready=False)
    assert running.wait_exit() == 1
    assert message in running.log
