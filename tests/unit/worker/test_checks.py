"""What is looked at before a worker takes its first call: with workers made by hand."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.concurrency import get_implementation

from celery_budgets import BudgetedTask, Budgets, ConfigurationError, Lane
from celery_budgets.config.settings import Settings
from celery_budgets.execution.memory import rss as memory
from celery_budgets.worker.pool.size import pool_name
from celery_budgets.worker.startup import checks
from celery_budgets.worker.startup.checks import capacity, check_queues, check_worker
from celery_budgets.worker.startup.refused import WorkerRefused

GIB = 1024**3


def new_worker(*lanes, pool="prefork", concurrency=1, queues=None, **conf):
    """Return a worker that is about to start, on lanes `a` (2 slots) and `b` (3)."""
    app = Celery("checks", broker=conf.pop("broker", "memory://"), set_as_current=False)
    app.conf.update(conf)
    Budgets(app, lanes=lanes or [Lane("a", 2), Lane("b", 3)])
    app.amqp.queues.select(queues or ["a"])
    return SimpleNamespace(
        app=app, concurrency=concurrency, pool_cls=f"celery.concurrency.{pool}:TaskPool"
    )


def check(worker, autoscale=None):
    return check_worker(worker, Budgets.of(worker.app).settings, autoscale)


def refused(worker, autoscale=None):
    with pytest.raises(WorkerRefused) as caught:
        check(worker, autoscale)
    return caught.value.problems


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The process of the tests may be larger than any limit."""
    monkeypatch.setattr(memory, "rss", lambda: 50_000_000)


def test_a_worker_that_may_start():
    """The lanes that it serves are those whose queues it consumes."""
    assert [lane.name for lane in check(new_worker())] == ["a"]
    assert [lane.name for lane in check(new_worker(queues=["b", "a"], concurrency=5))] == ["a", "b"]


def test_eventlet_is_refused():
    """No limit can be enforced on it."""
    assert refused(new_worker(pool="eventlet")) == (
        "pool eventlet: no limit can be enforced on it; start the worker with -P prefork, "
        "threads, gevent or solo",
    )


@pytest.mark.parametrize("pool", ["prefork", "thread", "gevent"])
def test_more_slots_than_the_lane_has(pool):
    """On every pool that has slots."""
    (problem,) = refused(new_worker(pool=pool, concurrency=3))
    assert problem.startswith("-c 3 is above the concurrency of a (2); leave -c out")


def test_solo_has_one_slot_whatever_is_asked_for():
    """Celery ignores -c there, and so does the check."""
    assert check(new_worker(pool="solo", concurrency=100))


def test_fewer_slots_are_said(caplog):
    """An operator's choice, noted in the log."""
    caplog.set_level(logging.INFO, logger="celery_budgets")
    check(new_worker(concurrency=1))
    assert "budgets.concurrency_lowered lanes=a concurrency=1 of=2" in caplog.text


@pytest.mark.parametrize("autoscale", ["3,1", (3, 1), [3, 1], "3"])
def test_autoscaling_above_the_lane(autoscale):
    """In each form in which Celery hands the option on."""
    (problem,) = refused(new_worker(), autoscale)
    assert problem == (
        "--autoscale 3 is above the concurrency of a (2); lower it to that, or raise the lane's "
        "concurrency"
    )


def test_autoscaling_within_the_lane():
    """Is accepted."""
    assert check(new_worker(), "2,1")


@pytest.mark.parametrize(
    ("broker", "visible", "refuse"),
    [
        ("redis://", 60, True),
        ("redis://", 59, True),
        ("redis://", 61, False),
        ("redis://", None, False),  # kombu's own default is an hour
        ("rediss://", 30, True),
        ("sentinel://", 30, True),
        ("amqp://", 30, False),  # RabbitMQ knows no such thing
    ],
)
def test_the_visibility_timeout(broker, visible, refuse):
    """A Redis broker must not hand a call out again that may still run for 60 s.

    Unless the worker renews it meanwhile.
    """
    options = {} if visible is None else {"visibility_timeout": visible}
    lane = Lane("a", 2, timeout=40)  # 40 x 1.5 = 60
    conf = {"broker": broker, "broker_transport_options": options}
    assert check(new_worker(lane, budgets_redis_transport="budgets", **conf))
    worker = new_worker(lane, budgets_redis_transport="kombu", **conf)
    if not refuse:
        assert check(worker)
        return
    (problem,) = refused(worker)
    assert "lane 'a': hard time limit 60 s is not below the broker's visibility timeout" in problem
    assert f"({visible} s)" in problem
    assert "['visibility_timeout'] above 60" in problem


def test_the_longest_task_counts_too():
    """A task whose own limit is above its lane's keeps its message as long."""
    worker = new_worker(
        broker="redis://", broker_transport_options={"visibility_timeout": 500},
        budgets_redis_transport="kombu",
    )  # fmt: skip
    worker.app.task(shared=False, base=BudgetedTask, name="long", timeout=400)(_nothing)
    (problem,) = refused(worker)
    assert "task 'long': hard time limit 600 s is not below" in problem  # 400 x 1.5


def _nothing():
    pass


def test_a_memory_limit_below_the_worker_itself(monkeypatch):
    """Every call would be over it before it began."""
    monkeypatch.setattr(memory, "rss", lambda: 2 * GIB)
    (problem,) = refused(new_worker())
    assert problem == (
        "lane 'a': max_rss 512 MiB is below what the worker takes before its first call "
        "(2 GiB); raise max_rss, or import less at its start"
    )


def test_a_task_that_does_not_go_with_its_lane():
    """All tasks are checked, not only those whose call comes first."""
    worker = new_worker()
    for name, options in {
        "one": {"lane": "c"}, "two": {"timeout": 90, "hard_timeout": 60}, "fine": {"timeout": 9},
    }.items():  # fmt: skip
        worker.app.task(shared=False, base=BudgetedTask, name=name, **options)(_nothing)
    assert refused(worker) == (
        "task 'one': lane 'c' is not known; known: a, b",
        "task 'two': timeout (90 s, soft) must be below hard_timeout (60 s); raise hard_timeout "
        "or lower timeout",
    )


def test_all_reasons_come_at_once(monkeypatch):
    """One start tells everything."""
    monkeypatch.setattr(memory, "rss", lambda: 2 * GIB)
    worker = new_worker(pool="eventlet", concurrency=9)
    worker.app.task(shared=False, base=BudgetedTask, name="one", lane="c")(_nothing)
    assert len(refused(worker)) == 4


@pytest.mark.parametrize(("timeout", "warned"), [(1100, True), (900, False)])
def test_rabbitmqs_own_limit_is_warned_of(caplog, timeout, warned):
    """It closes the channel after 30 minutes; the server's setting is not ours to read."""
    lane = Lane("a", 2, timeout=timeout)  # 1100 x 1.5 = 1650, 900 x 1.5 = 1350
    check(new_worker(lane, broker="amqp://"))
    assert ("budgets.consumer_timeout lane=a hard_time_limit=1650 s" in caplog.text) is warned


def test_queues_of_nobody():
    """Each one is named with the nearest that there is."""
    settings = Settings.from_mapping({})
    check_queues(settings, ["critic", "mine"], ["mine"])
    with pytest.raises(WorkerRefused) as caught:
        check_queues(settings, ["critics", "x"], ["mine"])
    assert caught.value.problems == (
        "-Q critics: there is no such queue; did you mean 'critic'? known: critic, file_read, "
        "file_write, forecast_model, mine, tool_call",
        "-Q x: there is no such queue; known: critic, file_read, file_write, forecast_model, "
        "mine, tool_call",
    )


def test_the_capacity_of_several_lanes():
    """Their sum, and never more than the global concurrency."""
    lanes = Settings.from_mapping({}).lanes
    assert capacity(lanes, [lanes["critic"], lanes["file_write"]]) == 7  # 3 + 4
    assert capacity(lanes, lanes.values()) == 32
    lanes.global_concurrency = 5
    assert capacity(lanes, [lanes["critic"], lanes["file_write"]]) == 5


def test_an_exclusion_is_not_counted():
    """`-X` of a queue takes its lane's slots away."""
    app = Celery("checks", broker="memory://", set_as_current=False)
    budgets = Budgets(app)
    for options, slots in (
        ({"queues": "critic,file_write"}, 7),
        ({"queues": ["critic", " file_write"], "exclude_queues": "critic"}, 4),
        ({"exclude_queues": "file_read,tool_call"}, 8),  # 4 + 3 + 1
        ({"queues": "critic", "concurrency": 1}, None),
        ({"queues": "critic", "autoscale": "2,1"}, None),
    ):
        app.conf.worker_concurrency = None
        budgets._on_worker_init(SimpleNamespace(app=app), app.conf, options)
        assert app.conf.worker_concurrency == slots


def test_a_worker_of_another_app_is_left_alone():
    """Two apps in one process: each worker is only its own app's business."""
    budgets = Budgets(Celery("one", broker="memory://", set_as_current=False))
    other = Celery("two", broker="memory://", set_as_current=False)
    budgets._on_worker_init(SimpleNamespace(app=other), other.conf, {"queues": "nowhere"})
    assert other.conf.worker_concurrency is None


@pytest.mark.parametrize("name", ["prefork", "threads", "gevent", "solo"])
def test_the_names_of_pools(name):
    """As on the command line, from the class as well as from its path."""
    assert pool_name(get_implementation(name)) == name
    assert pool_name("celery.concurrency.thread:TaskPool") == "threads"
    assert pool_name("my.pools:Special") == "pools"


def test_a_refusal_is_a_configuration_error():
    """Whoever embeds a worker catches one family."""
    with pytest.raises(ConfigurationError):
        check(new_worker(pool="eventlet"))


@pytest.mark.parametrize(
    ("version", "told"),
    [((3, 13, 9), False), ((3, 14, 0), True), ((3, 14, 4), True), ((3, 14, 5), False)],
)
def test_a_python_whose_collector_keeps_memory(version, told):
    """Those with the incremental garbage collector, which 3.14.5 took back."""
    assert (checks.python_problem(version) is not None) == told


def test_a_limit_over_the_fleet_needs_redis():
    """The worker does not start without; a lane without a limit needs none."""
    lane = Lane("a", 2, fleet=1)
    (problem,) = refused(new_worker(lane, broker="amqp://"))
    assert problem.startswith("a limit over the fleet needs a Redis to keep it in")
    assert check(new_worker(lane, broker="amqp://", budgets_idempotency_url="redis://h/1"))
    assert check(new_worker(Lane("a", 2), broker="amqp://"))


@pytest.mark.parametrize(
    ("broker", "name", "words"),
    [
        ("redis://", "ap", "task 't': limit 'ap' is not known; did you mean 'api'?"),
        ("redis://", "tenant", "task 't': limit 'tenant': its key 'tenant_id' is no argument of"),
        ("amqp://", "api", "a limit over the fleet needs a Redis"),
    ],
)
def test_limits_that_tasks_name(broker, name, words):
    """Known ones, with keys that are arguments, and a Redis."""
    limits = {"api": 1, "tenant": {"concurrency": 1, "key": "tenant_id"}}
    worker = new_worker(broker=broker, budgets_limits=limits)
    worker.app.task(base=BudgetedTask, name="t", limits=[name])(python_task)
    (problem,) = refused(worker)
    assert problem.startswith(words)


def python_task():
    """Do nothing."""
