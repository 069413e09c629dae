"""Routing: which lane a call belongs to, and so which queue its message goes to."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
from celery import Celery, Task, chord, group
from celery.exceptions import QueueNotFound
from kombu import Exchange, Queue

from celery_budgets import BudgetedTask, Budgets, ConfigurationError, Lane, Lanes
from celery_budgets.config.routing import LaneRouter, lane_of


def nothing():
    pass


def new_app(lanes=None, **conf):
    """Return an app of lanes `quick`, `slow` and `files`; the first is the default."""
    app = Celery("routing", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(conf)
    Budgets(
        app,
        lanes=lanes
        or [
            Lane("quick", queue="q"),
            Lane("slow", tools=["slow_one", "*_unlock"]),
            Lane("files", tools=["fs_*"]),
        ],
    )
    return app


def queue_of(app, send):
    """Return the queue to which *send* publishes its one message."""
    sent = []
    with app.connection_for_write() as connection:
        for queue in app.amqp.queues.values():
            bound = queue(connection.default_channel)
            bound.declare()
            bound.purge()
        send()
        for name, queue in app.amqp.queues.items():
            while queue(connection.default_channel).get(no_ack=True):
                sent.append(name)
    (only,) = sent
    return only


@pytest.fixture
def app():
    app = new_app()
    yield app
    app.close()


@pytest.mark.parametrize(
    ("name", "lane", "queue"),
    [
        ("anything", None, "q"),  # the default lane
        ("anything", "slow", "slow"),  # its own word
        ("slow_one", None, "slow"),  # the tool table, by name
        ("fs_read", None, "files"),  # the tool table, by glob
        ("fs_read", "quick", "q"),  # its own word before the tool table
    ],
)
def test_a_task_goes_to_its_lane(app, name, lane, queue):
    """The task's own `lane`, then the tool table, then the default lane."""
    task = app.task(shared=False, base=BudgetedTask, name=name, lane=lane)(nothing)
    assert queue_of(app, task.delay) == queue
    assert task.home().queue == queue


@pytest.mark.parametrize("by_name", [False, True])
def test_an_explicit_queue_goes_before_everything(app, by_name):
    """`apply_async(queue=...)` beats the task's lane and the tool table."""
    task = app.task(shared=False, base=BudgetedTask, name="fs_read", lane="slow")(nothing)

    def send():
        if by_name:
            app.send_task("fs_read", queue="q")
        else:
            task.apply_async(queue="q")

    assert queue_of(app, send) == "q"


def test_a_queue_of_the_task_goes_before_its_lane(app):
    """Celery's own `queue` attribute is an explicit queue too."""
    task = app.task(shared=False, base=BudgetedTask, name="fs_read", queue="slow")(nothing)
    assert queue_of(app, task.delay) == "slow"


@pytest.mark.parametrize(
    ("name", "queue"), [("anything", "q"), ("slow_one", "slow"), ("fs_stat", "files")]
)
def test_send_task_by_name(app, name, queue):
    """A task that this process does not know goes by the tool table."""
    assert name not in app.tasks
    assert queue_of(app, lambda: app.send_task(name)) == queue


def test_send_task_by_name_of_a_registered_task(app):
    """A task that is known has its own lane, also when it is sent by name."""
    app.task(shared=False, base=BudgetedTask, name="fs_read", lane="slow")(nothing)
    app.finalize()
    assert queue_of(app, lambda: app.send_task("fs_read")) == "slow"


def test_a_plain_task_goes_by_the_same_rules(app):
    """Without a budget it still needs a worker that takes its messages."""
    plain = app.task(shared=False, base=Task, name="plain")(nothing)
    tool = app.task(shared=False, base=Task, name="fs_plain")(nothing)
    assert queue_of(app, plain.delay) == "q"
    assert queue_of(app, tool.delay) == "files"


@pytest.mark.parametrize(
    "name", ["celery.backend_cleanup", "celery.chord_unlock", "celery.unknown_one"]
)
def test_celerys_own_tasks_go_to_the_default_lane(app, name):
    """Whatever a glob says: `*_unlock` is meant for tools of the user's."""
    assert queue_of(app, lambda: app.send_task(name)) == "q"


def test_signatures_and_groups_are_routed_one_by_one(app):
    """Each call of a canvas goes to the lane of its own task."""
    one = app.task(shared=False, base=BudgetedTask, name="fs_one")(nothing)
    two = app.task(shared=False, base=BudgetedTask, name="two", lane="slow")(nothing)
    assert queue_of(app, one.si().apply_async) == "files"
    assert queue_of(app, two.s().set(queue="q").delay) == "q"
    assert queue_of(app, group([one.si()]).apply_async) == "files"
    # The body waits; the header is what is published now.
    assert queue_of(app, chord([two.si()], one.si()).apply_async) in ("slow", "files")


def test_routes_of_the_user_go_first():
    """A route in `task_routes` beats the lane; what it does not name goes by lane."""
    app = new_app(task_routes={"fs_read": {"queue": "slow"}})
    read = app.task(shared=False, base=BudgetedTask, name="fs_read")(nothing)
    write = app.task(shared=False, base=BudgetedTask, name="fs_write")(nothing)
    assert queue_of(app, read.delay) == "slow"
    assert queue_of(app, write.delay) == "files"


@pytest.mark.parametrize(
    "routes",
    [
        lambda name, *_, **__: {"queue": "slow"} if name == "fs_read" else None,
        [{"other": {"queue": "q"}}, {"fs_*": "slow"}],
        ({"fs_read": "slow"},),
        None,
    ],
    ids=["function", "list", "tuple", "none"],
)
def test_routes_of_every_form_are_kept(routes):
    """Celery takes a mapping, a function, or a list of either; the lanes come after them."""
    app = new_app(task_routes=routes)
    expected = "files" if routes is None else "slow"
    assert queue_of(app, lambda: app.send_task("fs_read")) == expected
    assert queue_of(app, lambda: app.send_task("anything")) == "q"


def test_an_unknown_queue_is_an_error(app):
    """It is not created in silence, where no worker would ever look."""
    task = app.task(shared=False, base=BudgetedTask, name="fs_read")(nothing)
    with pytest.raises(QueueNotFound):
        task.apply_async(queue="nowhere")
    with pytest.raises(QueueNotFound):
        app.send_task("fs_read", queue="nowhere")
    with pytest.raises(QueueNotFound):
        new_app(task_routes={"fs_read": "nowhere"}).send_task("fs_read")


def test_an_unknown_lane_is_an_error_where_the_call_is_made(app):
    """The caller learns it, not a worker that nobody watches."""
    task = app.task(shared=False, base=BudgetedTask, name="fs_read", lane="slwo")(nothing)
    with pytest.raises(ConfigurationError, match="lane 'slwo' is not known; did you mean 'slow'"):
        task.delay()


@pytest.mark.parametrize(
    "declared",
    [
        [
            Queue("extra", Exchange("x"), routing_key="k"),
            Queue("slow", queue_arguments={"x-max-length": 7}),
        ],
        {
            "extra": {"exchange": "x", "routing_key": "k"},
            "slow": {"queue_arguments": {"x-max-length": 7}},
        },
    ],
    ids=["list", "mapping"],
)
def test_queues_that_the_user_declares_are_kept(declared):
    """Extra ones stay, and a lane's queue keeps the arguments that the user gave it."""
    app = new_app(task_queues=declared)
    queues = app.amqp.queues
    assert set(queues) == {"extra", "slow", "q", "files"}
    assert (queues["extra"].exchange.name, queues["extra"].routing_key) == ("x", "k")
    assert queues["slow"].queue_arguments == {"x-max-length": 7}
    assert queue_of(app, lambda: app.send_task("fs_read", queue="extra")) == "extra"


def test_the_queues_are_as_celery_would_make_them():
    """A plain Celery producer that declares a lane's queue agrees about it."""
    plain = Celery("plain", broker="memory://", set_as_current=False)
    theirs, ours = plain.amqp.queues["slow"], new_app().amqp.queues["slow"]
    assert (ours.exchange.name, ours.exchange.type) == (theirs.exchange.name, theirs.exchange.type)
    assert ours.routing_key == theirs.routing_key
    assert ours.durable == theirs.durable


def test_settings_of_the_user_for_queues_are_kept():
    """Default queue and prefetch multiplier are set only where the user has not."""
    mine = new_app(task_default_queue="slow", worker_prefetch_multiplier=4)
    assert queue_of(mine, lambda: mine.send_task("anything", queue="slow")) == "slow"
    assert mine.conf.task_default_queue == "slow"
    assert mine.conf.worker_prefetch_multiplier == 4
    ours = new_app()
    assert queue_of(ours, lambda: ours.send_task("anything")) == "q"
    assert ours.conf.task_default_queue == "q"
    assert ours.conf.worker_prefetch_multiplier == 1


def test_configuration_loaded_late_is_routed_too():
    """Budgets(app) before config_from_object: the module's routes still go first."""
    app = Celery("late", broker="memory://", backend="cache+memory://", set_as_current=False)
    Budgets(app, lanes=[Lane("a"), Lane("b", tools=["fs_*"])])
    app.config_from_object(SimpleNamespace(broker_url="memory://", task_routes={"fs_x": "a"}))
    assert queue_of(app, lambda: app.send_task("fs_x")) == "a"
    assert queue_of(app, lambda: app.send_task("fs_y")) == "b"


def test_two_budgets_on_one_app_route_once():
    """A second Budgets(app), as a library might make one, neither doubles nor undoes anything."""
    app = new_app()
    assert queue_of(app, lambda: app.send_task("fs_read")) == "files"
    Budgets(app)
    assert queue_of(app, lambda: app.send_task("fs_read")) == "files"
    routers = [route for route in app.conf.task_routes if isinstance(route, LaneRouter)]
    assert len(routers) == 1


def test_the_worker_goes_by_the_queue_of_the_message():
    """There the queue is where the call came from, and the first word; an unknown one is none."""
    lanes = Lanes()
    slow = SimpleNamespace(lane="slow")
    assert lane_of(lanes, "fs_read", slow, "file_read").name == "file_read"
    with pytest.raises(ConfigurationError, match="lane 'slow' is not known"):
        lane_of(lanes, "fs_read", slow, "elsewhere")
    assert lane_of(lanes, "fs_read", None, "elsewhere").name == "file_read"


def test_the_router_travels_to_a_spawned_process():
    """It is part of the configuration that such a process gets, and finds its own app there."""
    back = pickle.loads(pickle.dumps(LaneRouter(new_app())))
    assert back.app is None
