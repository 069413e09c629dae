"""`celery lanes worker` and what `celery lanes up` builds, up to the start of a process."""

from __future__ import annotations

import os
import sys

import pytest
from celery.bin.celery import celery
from click.testing import CliRunner

from celery_budgets.cli import up
from celery_budgets.cli import worker as worker_command
from celery_budgets.cli.invocation import scaled
from celery_budgets.cli.printer import Printer
from celery_budgets.model.lanes import Lane

APP = "tests.worker.lanes_app"


@pytest.fixture
def run(monkeypatch):
    """Run `celery ARGUMENTS` in this process; celery keeps options in the environment."""
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CELERY_CONFIG_MODULE"):
        # Set and deleted, so that what celery sets is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def run(*arguments: str):
        return CliRunner().invoke(celery, arguments, auto_envvar_prefix="CELERY")

    return run


@pytest.fixture
def executed(monkeypatch) -> list[list[str]]:
    """Commands that would have replaced this process."""
    commands: list[list[str]] = []
    monkeypatch.setattr(worker_command.os, "execv", lambda _path, argv: commands.append(argv))
    return commands


@pytest.fixture
def supervised(monkeypatch) -> list[dict]:
    """What would have been supervised; every run ends with code 0."""
    made: list[dict] = []

    class Recorder:
        def __init__(self, commands, **options):
            made.append({"commands": commands, **options})

        def stop(self, *_):
            pass

        def run(self):
            return 0

    monkeypatch.setattr(up, "Supervisor", Recorder)
    return made


def test_the_worker_command_is_printed_and_executed(run, executed):
    """Queue and name are enough: the rest the worker takes from its lane."""
    result = run("-A", APP, "lanes", "worker", "quick")
    line = f"celery -A {APP} worker -Q quick -n quick@%h"
    assert result.output.splitlines() == [line]
    assert executed == [[sys.executable, "-m", *line.split()]]


def test_print_only_prints(run, executed):
    """Also behind the lane's name."""
    assert run("-A", APP, "lanes", "worker", "--print", "quick").exit_code == 0
    assert run("-A", APP, "lanes", "worker", "quick", "--print").exit_code == 0
    assert executed == []


@pytest.mark.parametrize(
    ("chosen", "queues"),
    [
        (["--all"], "quick,slow"),
        (["slow", "quick"], "slow,quick"),
        (["slow", "slow", "quick"], "slow,quick"),
    ],
)
def test_several_lanes_share_a_worker(run, executed, chosen, queues):
    """It has no lane's name; what comes after the lanes is the worker's."""
    result = run("-A", APP, "lanes", "worker", *chosen, "--", "-P", "threads", "-n", "quick")
    line = f"celery -A {APP} worker -Q {queues} -P threads -n quick"
    assert result.output.splitlines() == [line]
    assert executed == [[sys.executable, "-m", *line.split()]]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([], "name a lane, or give --all for every lane"),
        (["--", "-P", "threads"], "name a lane, or give --all for every lane"),
        (["--all", "quick"], "--all is every lane, and quick is named; drop one"),
    ],
)
def test_which_lanes_is_said_once(run, executed, chosen, message):
    """Neither and both are errors of usage."""
    result = run("-A", APP, "lanes", "worker", *chosen)
    assert result.exit_code == 2
    assert message in result.output
    assert executed == []


@pytest.mark.parametrize("separator", [["--"], []])
def test_further_arguments_go_to_the_worker(run, separator):
    """With or without the two dashes, quoted for a shell."""
    extra = ["-P", "threads", "--logfile", "a b.log"]
    result = run("-A", APP, "lanes", "worker", "--print", "quick", *separator, *extra)
    assert result.output.rstrip().endswith("-n quick@%h -P threads --logfile 'a b.log'")


@pytest.mark.parametrize("name", [["-n", "mine@%h"], ["--hostname=mine@%h"]])
def test_a_name_of_the_users_replaces_ours(run, name):
    """A worker has one name."""
    output = run("-A", APP, "lanes", "worker", "--print", "quick", "--", *name).output
    assert "quick@%h" not in output
    assert " ".join(name) in output


def test_global_options_are_passed_on(run, tmp_path, monkeypatch):
    """Those of the command line; a relative directory would be entered twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "inner").mkdir()
    result = run(
        *("-A", APP, "-b", "redis://broker/0", "--workdir", "inner"),
        *("lanes", "worker", "--print", "quick"),
    )
    expected = f"-A {APP} --broker redis://broker/0 --workdir {tmp_path}/inner worker"
    assert expected in result.output


def test_an_unknown_lane_is_an_error(run, executed):
    """It names the known ones, and nothing runs."""
    result = run("-A", APP, "lanes", "worker", "quik")
    assert result.exit_code == 1
    assert "Error: lane 'quik' is not known; did you mean 'quick'?" in result.output
    assert executed == []


def test_without_an_app_workers_could_not_find_it(run):
    """The current app has no name that a worker could import."""
    result = run("lanes", "worker", "critic")
    assert result.exit_code == 2
    assert "name the app" in result.output


def test_up_runs_every_lane(run, supervised):
    """The longest hard limit bounds a warm stop: 300 s x 1.5."""
    result = run("-A", APP, "-b", "redis://broker/0", "lanes", "up")
    assert result.exit_code == 0, result.output
    (made,) = supervised
    assert list(made["commands"]) == ["quick", "slow"]
    assert made["commands"]["slow"][3:] == [
        *("-A", APP, "--broker", "redis://broker/0", "worker"),
        *("-Q", "slow", "-n", "slow@%h", "-l", "INFO"),
    ]
    assert made["longest_call"] == 450
    assert made["environment"]["CELERY_BROKER_URL"] == "redis://broker/0"


def test_up_runs_chosen_lanes_at_a_part_of_their_concurrency(run, supervised):
    """Each lane once, however often it is named."""
    result = run(
        *("-A", APP, "-b", "redis://broker/0", "lanes", "up", "--lane", "quick", "--lane", "quick"),
        *("--concurrency-scale", "0.5", "--loglevel", "ERROR"),
    )
    assert result.exit_code == 0, result.output
    assert list(supervised[0]["commands"]) == ["quick"]
    assert supervised[0]["commands"]["quick"][-4:] == ["-l", "ERROR", "-c", "1"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--lane", "quik"], 1, "lane 'quik' is not known"),
        (["--concurrency-scale", "0"], 2, "at most 1"),
        (["--concurrency-scale", "1.5"], 2, "at most 1"),
        (["--concurrency-scale", "nan"], 2, "nan must be above 0"),
    ],
)
def test_up_refuses(run, supervised, arguments, code, message):
    """Nothing is started."""
    result = run("-A", APP, "-b", "redis://broker/0", "lanes", "up", *arguments)
    assert result.exit_code == code
    assert message in result.output
    assert supervised == []


OPTIONS = [
    ["-E", "-P", "threads"],
    ["--task-events", "--pool=threads", "-Ofair", "--max-tasks-per-child", "10"],
    ["-l", "DEBUG", "--without-mingle"],
    ["--pidfile", "/run/%n.pid", "-S", "state-%p", "--autoscale", "1,1"],
    ["--logfile", "a b.log"],
    [],
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_up_hands_options_on_to_each_worker(run, supervised, options):
    """Those after the two dashes, as they stand."""
    result = run("-A", APP, "-b", "redis://broker/0", "lanes", "up", "--", *options)
    assert result.exit_code == 0, result.output
    (made,) = supervised
    for lane in ("quick", "slow"):
        own = ["worker", "-Q", lane, "-n", f"{lane}@%h", "-l", "INFO"]
        assert made["commands"][lane][-len(own) - len(options) :] == [*own, *options]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "-Q", "other"], "choose lanes with --lane before --"),
        (["--", "--queues=other"], "choose lanes with --lane before --"),
        (["--", "-Qother"], "choose lanes with --lane before --"),
        (["--", "-E", "-X", "slow"], "choose lanes with --lane before --"),
        (["--", "-n", "mine@%h"], "lanes worker LANE -- -n NAME"),
        (["--", "--hostname=mine@%h"], "lanes worker LANE -- -n NAME"),
        (["--", "-c", "1"], "lower all with --concurrency-scale before --"),
        (["--", "-Ec1"], "lower all with --concurrency-scale before --"),
        (["--", "--concurrency", "1"], "lower all with --concurrency-scale before --"),
        (["--concurrency-scale", "0.5", "--", "--autoscale", "2,1"], "drop one"),
        (["--", "-A", "other"], "give it before lanes"),
        (["--", "--broker", "redis://"], "give it before lanes"),
        (["--", "-D"], "start that in the background"),
        (["--", "-B"], "run celery beat beside them"),
        (["--", "--beat"], "run celery beat beside them"),
        (["--", "--help"], "see celery worker --help"),
        (["--", "--pidfile", "/run/worker.pid"], "put %n into it"),
        (["--", "--statedb=/run/state"], "put %n into it"),
        (["--", "--evnets"], "for celery worker: No such option"),
        (["--", "-P"], "for celery worker: Option '-P' requires an argument"),
        (["-E"], "Options of the workers go after --"),
        (["--pool", "threads"], "Options of the workers go after --"),
        (["quick"], "unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_up_refuses_options_that_not_every_worker_can_have(run, supervised, arguments, message):
    """With what to do instead, and nothing is started."""
    result = run("-A", APP, "-b", "redis://broker/0", "lanes", "up", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert supervised == []


def test_up_shows_how_options_go_to_the_workers(run):
    """In the line of its usage, and in an example."""
    output = run("-A", APP, "lanes", "up", "--help").output
    assert "up [OPTIONS] [-- WORKER_OPTIONS]" in output
    assert "$ celery -A tools lanes up -- -E -P threads" in output


def test_up_without_a_broker_has_three_remedies(run, supervised):
    """And the option that needs none of them."""
    result = run("-A", APP, "lanes", "up")
    assert result.exit_code == 1
    for remedy in ("--embedded-broker", "pip install", "on the PATH", "broker_url"):
        assert remedy in result.output
    assert supervised == []


def test_up_does_not_take_two_brokers(run, supervised):
    """One named and one embedded."""
    result = run("-A", APP, "-b", "redis://broker/0", "lanes", "up", "--embedded-broker")
    assert result.exit_code == 2
    assert "drop one" in result.output
    assert supervised == []


def test_up_with_an_embedded_broker_says_how_to_reach_it(run, supervised):
    """The workers get the same addresses, without a change to this process."""
    result = run("-A", APP, "lanes", "up", "--embedded-broker")
    assert result.exit_code == 0, result.output
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        assert f"export {name}={supervised[0]['environment'][name]}" in result.output
        assert name not in os.environ


@pytest.mark.parametrize(
    ("concurrency", "scale", "expected"),
    [(16, 1.0, 16), (16, 0.5, 8), (3, 0.5, 1), (8, 0.3, 2), (1, 0.01, 1), (10, 0.7, 7)],
)
def test_scaled_concurrency(concurrency, scale, expected):
    """Rounded down, but never to nothing."""
    assert scaled(Lane("lane", concurrency), scale) == expected


def test_lines_are_coloured_by_lane_on_a_terminal_only(capsys):
    """The prefix has the width of the longest lane."""
    Printer(["a", "long"], color=True).say("a", "text")
    Printer(["a", "long"], color=False).say("a", "text")
    assert capsys.readouterr().out == "\x1b[36ma    |\x1b[0m text\na    | text\n"


def test_a_closed_output_is_no_reason_to_stop(monkeypatch):
    """The workers are looked after although nobody reads any more."""

    def broken(*_args, **_options):
        raise BrokenPipeError

    monkeypatch.setattr("celery_budgets.cli.printer.click.echo", broken)
    Printer(["a"], color=False).say("a", "text")
