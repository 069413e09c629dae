"""`celery lanes check`: every problem a line with its remedy, code 1; else code 0."""

from __future__ import annotations

import socket
import time

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_budgets import BudgetedTask, Budgets, Lane
from celery_budgets.cli import findings, lanes


def run(app: Celery, *arguments: str):
    """Run `celery lanes check ARGUMENTS` for *app*."""
    context = CLIContext(app, no_color=True, workdir=None)
    return CliRunner().invoke(lanes, ["check", *arguments], obj=context)


def failures(result) -> list[str]:
    return [line for line in result.output.splitlines() if line.startswith("FAIL")]


def nothing() -> None:
    """The body of a task that is never called."""


def make_app(broker: str | None = None, **conf) -> Celery:
    made = Celery("check", broker=broker, set_as_current=False)
    made.conf.update(conf)
    Budgets(made)

    @made.task(base=BudgetedTask, name="fs_read", shared=False)
    def fs_read(path):
        return path

    return made


def test_all_well(broker_url):
    """A line for each thing that was looked at, on each broker."""
    result = run(make_app(broker_url))
    assert result.exit_code == 0, result.output
    assert failures(result) == []
    for line in ("5 lanes, concurrency 32 of 32", "1 budgeted task", "answers"):
        assert line in result.output
    assert ("visibility" in result.output) == broker_url.startswith("redis")


def test_it_changes_nothing_at_the_broker(redis_url):
    """It looks, and leaves."""
    app = make_app(redis_url)
    assert run(app).exit_code == 0
    with app.connection_for_read() as connection:
        assert connection.default_channel.client.keys() == []


def test_everything_wrong_with_the_settings_at_once():
    """The broker is looked at all the same."""
    app = make_app(budgets_timeout="soon", budgets_global_concurrency=0, budgets_laness={})
    result = run(app)
    assert result.exit_code == 1
    told = failures(result)
    for word in ("budgets_timeout", "budgets_global_concurrency", "budgets_laness", "broker"):
        assert any(word in line for line in told), (word, told)
    assert result.output.splitlines()[-1] == f"{len(told)} problems"


def test_a_declared_tool_without_a_task():
    """The built-in tool table may name tools that this app does not have."""
    app = make_app(budgets_tools={"fs_raed": "file_read", "report.*": "critic", "fs_*": "critic"})
    told = failures(run(app, "--no-broker"))
    assert len(told) == 2
    assert "tool 'fs_raed' of lane 'file_read' matches no registered task" in told[0]
    assert "did you mean 'fs_read'?" in told[0]
    assert "tool 'report.*' of lane 'critic'" in told[1]


def test_a_built_in_tool_that_the_app_moved_is_its_own():
    """critics_run stands in the built-in table, but for another lane."""
    app = make_app(budgets_tools={"critics_run": "tool_call"})
    assert "tool 'critics_run' of lane 'tool_call'" in failures(run(app, "--no-broker"))[0]


def test_a_task_with_an_unknown_lane():
    """It names the known ones."""
    app = make_app()
    app.task(base=BudgetedTask, shared=False, name="lost", lane="crtic")(nothing)
    (told,) = failures(run(app, "--no-broker"))
    assert "task 'lost': lane 'crtic' is not known; did you mean 'critic'?" in told


def test_a_task_whose_limits_contradict_each_other():
    """Both numbers are named."""
    app = make_app()
    app.task(base=BudgetedTask, shared=False, name="odd", timeout=100, hard_timeout=90)(nothing)
    (told,) = failures(run(app, "--no-broker"))
    assert "task 'odd': timeout (100 s, soft) must be below hard_timeout (90 s)" in told


@pytest.mark.parametrize(
    ("visible", "told"),
    [
        (450, "lane 'tool_call': hard time limit 450 s is not below"),
        (451, None),
    ],
)
def test_the_visibility_timeout_must_be_above_the_longest_hard_limit(visible, told):
    """Else Redis hands a running call to a second worker."""
    app = make_app(
        "redis://localhost/0", broker_transport_options={"visibility_timeout": visible},
        budgets_redis_transport="kombu",
    )  # fmt: skip
    result = run(app, "--no-broker")
    assert result.exit_code == (1 if told else 0)
    assert [told in line for line in failures(result)] == ([True] if told else [])


@pytest.mark.parametrize(
    ("visible", "told"),
    [
        (
            3600,
            "warning: 3600 s; calls may take longer, as workers renew them, and those of a dead",
        ),
        (120, "ok    visibility     120 s; calls may take longer, as workers renew them"),
        (60, "60 s; calls may take longer, as workers renew them"),
        (
            5,
            "but not while a worker stands still for that long; set broker_transport_options['visi",
        ),
    ],
)
def test_a_visibility_timeout_of_a_minute_or_two_is_recommended(visible, told):
    """It says how soon the calls of a dead worker start again, and bounds no call."""
    options = {"visibility_timeout": visible}
    app = make_app(
        "redis://localhost/0", broker_transport_options=options, budgets_redis_transport="budgets"
    )
    result = run(app, "--no-broker")
    assert (result.exit_code, told in result.output) == (0, True), result.output


def test_a_tasks_own_limit_counts_too():
    """3000 s x 1.5 is above Redis's 3600 s."""
    app = make_app("redis://localhost/0", budgets_redis_transport="kombu")
    app.task(base=BudgetedTask, shared=False, name="long", lane="critic", timeout=3000)(nothing)
    (told,) = failures(run(app, "--no-broker"))
    assert "task 'long': hard time limit 4500 s" in told
    assert "above 4500, or lower" in told
    assert run(app, "--no-broker", "--lane", "file_read").exit_code == 0


def test_one_lane():
    """What is wrong with another one is not its business."""
    app = Celery("one", broker="redis://localhost/0", set_as_current=False)
    app.conf.budgets_redis_transport = "kombu"
    Budgets(app, lanes=[Lane("fast", 2), Lane("late", 1, timeout="2h", tools=["nothing"])])
    result = run(app, "--no-broker", "--lane", "fast")
    assert result.exit_code == 0, result.output
    assert "lane fast: queue fast, concurrency 2" in result.output
    assert len(failures(run(app, "--no-broker", "--lane", "late"))) == 2


def test_an_unknown_lane():
    """It names the known ones."""
    result = run(make_app(), "--no-broker", "--lane", "crtic")
    assert result.exit_code == 1
    assert "lane 'crtic' is not known; did you mean 'critic'?" in failures(result)[0]


@pytest.mark.parametrize(
    ("broker", "told"),
    [
        (None, "none is configured; set broker_url"),
        ("redis://:secret@127.0.0.1:1/0", "127.0.0.1:1/0 does not answer"),
        ("amqp://guest:secret@127.0.0.1:1//", "127.0.0.1:1// does not answer"),
        ("carrier-pigeon://u:secret@coop", "cannot be used (No such transport: carrier-pigeon)"),
    ],
)
def test_a_broker_that_is_not_there(broker, told):
    """One line, with a remedy and without the password."""
    result = run(make_app(broker))
    assert result.exit_code == 1
    (line,) = failures(result)
    assert told in line
    assert "secret" not in result.output


def test_a_broker_that_accepts_and_is_mute(monkeypatch):
    """It is not waited for without end."""
    monkeypatch.setattr(findings, "BROKER_SECONDS", 0.5)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        started = time.monotonic()
        result = run(make_app(f"redis://127.0.0.1:{mute.getsockname()[1]}/0"))
        assert time.monotonic() - started < 5
    assert "no answer in 500 ms" in failures(result)[0]
