"""`celery lanes set`, `pause` and `resume`, with crafted answers."""

from __future__ import annotations

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_budgets import Budgets, Lane
from celery_budgets.cli import lane_commands, lanes
from celery_budgets.sending.remote_control import Replies
from tests.support.answers import answer, lane

QUICK, SLOW = answer({"quick": lane()}), answer({"slow": lane(queue="slow")})
#: Two workers of quick, one of slow, and one that is silent.
HEARD = Replies({"a@h": QUICK, "b@h": QUICK, "c@h": SLOW}, ("d@h",))
NO_ANSWER = "no answer from d@h: it hangs, was killed, or runs without budgets\n"


@pytest.fixture
def run(monkeypatch):
    """Run `celery lanes ARGUMENTS`; return its result, and what was told to whom."""
    app = Celery("lane_commands", set_as_current=False, broker="memory://")
    Budgets(app, lanes=[Lane("quick", 2), Lane("slow", 1)])
    told = []

    class Workers:
        """Answer *heard* when they are asked, and *says* to a command."""

        def __init__(self, heard, says):
            self.heard, self.says = heard, says

        def ask(self, timeout):
            return self.heard

        def control(self, command, arguments, workers, timeout):
            told.append((command, arguments, list(workers)))
            by_worker = {name: self.says[name] for name in workers if name in self.says}
            return Replies(by_worker, tuple(name for name in workers if name not in by_worker))

    def run(*arguments, heard=HEARD, says):
        told.clear()
        monkeypatch.setattr(lane_commands, "Inspection", lambda _: Workers(heard, says))
        monkeypatch.setattr(lane_commands, "require_broker", lambda _: None)
        context = CLIContext(app, no_color=True, workdir=None)
        return CliRunner().invoke(lanes, arguments, obj=context), told

    return run


DONE = {"a@h": {"ok": "done"}, "b@h": {"ok": "done"}, "c@h": {"error": "not mine"}}


def test_every_worker_of_the_lane_is_told(run):
    """And no other; one that is silent may or may not be one, so that is no failure."""
    result, told = run("set", "quick", "--concurrency", "3", says=DONE)
    assert told == [("lane_limit", {"lane": "quick", "concurrency": 3}, ["a@h", "b@h"])]
    assert result.stdout == "a@h: done\nb@h: done\n"
    assert result.stderr == NO_ANSWER
    assert result.exit_code == 0


@pytest.mark.parametrize(("command", "name"), [("pause", "pause_lane"), ("resume", "resume_lane")])
def test_named_workers_are_told(run, command, name):
    """Each once, with commas or without, also one that does not serve the lane: it refuses."""
    result, told = run(command, "quick", "-d", "c@h,a@h", "-d", "a@h", says=DONE)
    assert told == [(name, {"lane": "quick"}, ["c@h", "a@h"])]
    assert (result.stdout, result.stderr) == ("a@h: done\n", "Error: c@h: not mine\n")
    assert result.exit_code == 1


@pytest.mark.parametrize("options", [[], ["-d", "a@h,b@h"]])
def test_one_that_falls_silent_is_named(run, options):
    """What it has done is not known: code 1."""
    result, _ = run("pause", "quick", *options, says={"a@h": {"ok": "done"}})
    assert result.stderr.startswith("Error: no answer from b@h\n")
    assert result.exit_code == 1


def test_a_named_worker_that_is_not_there_is_named(run):
    """And nothing is told to all workers in its place."""
    result, told = run("pause", "quick", "-d", "gone@h", says=DONE)
    assert told == []
    assert (result.stderr, result.exit_code) == ("Error: no answer from gone@h\n", 1)


def test_a_lane_that_nobody_serves_is_a_failure(run):
    """With those named that might."""
    heard = Replies({"c@h": SLOW}, ("d@h",))
    result, told = run("pause", "quick", heard=heard, says=DONE)
    assert told == []
    assert result.stderr == f"{NO_ANSWER}Error: no worker that serves quick answered within 1 s\n"
    assert result.exit_code == 1


def test_an_unknown_lane_is_told_to_nobody(run):
    """The nearest name is in the message."""
    result, told = run("pause", "quik", says=DONE)
    assert told == []
    assert "lane 'quik' is not known; did you mean 'quick'?" in result.output
    assert result.exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["set", "quick"],
        ["set", "--concurrency", "2"],
        ["pause"],
        ["pause", "quick", "-d", ""],
        ["pause", "quick", "-d", "a@h,"],
    ],
)
def test_what_is_missing_is_an_error_of_usage(run, arguments):
    """Code 2, as for all commands."""
    result, told = run(*arguments, says=DONE)
    assert (result.exit_code, told) == (2, [])


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ({"error": "KeyError('pause_lane')"}, "it does not know pause_lane; it runs an older"),
        ({"error": "not mine"}, "not mine"),
        ({"active": 0}, "{'active': 0}"),
        (None, "None"),
        (["ok"], "['ok']"),
    ],
)
def test_what_is_no_answer_to_a_command_is_a_failure(run, reply, said):
    """Whatever another version, or another package, replies."""
    result, _ = run("pause", "quick", says=DONE | {"a@h": reply})
    assert result.stdout == "b@h: done\n"
    assert f"Error: a@h: {said}" in result.stderr
    assert result.exit_code == 1


def test_workers_without_budgets_are_told_from_those_that_hang(run):
    """They are no failure either, but where one was named."""
    heard = HEARD._replace(silent=("d@h", "e@h"), plain=("e@h",))
    plain = "e@h runs without budgets, or with an older version of them\n"
    result, _ = run("pause", "quick", heard=heard, says=DONE)
    assert (result.stderr, result.exit_code) == (NO_ANSWER + plain, 0)
    result, told = run("pause", "quick", "-d", "e@h", heard=heard, says=DONE)
    assert (result.stderr, result.exit_code, told) == (f"Error: {plain}", 1, [])
