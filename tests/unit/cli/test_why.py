"""`celery lanes why`: two lines, JSON, exit codes."""

from __future__ import annotations

import json

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_budgets import Budgets, Lane
from celery_budgets.cli import lanes
from celery_budgets.cli import why as cli
from celery_budgets.model.why import Cause, Why

KNOWN = Why("4f1c", Cause.LANE, lane="critic", position=2)


@pytest.fixture
def run(monkeypatch):
    """Run `celery lanes why ARGUMENTS` where *found* is the answer; it keeps what was asked."""
    app = Celery("why", set_as_current=False, broker="memory://")
    Budgets(app, lanes=[Lane("critic", 2)])

    def run(*arguments, found=KNOWN):
        def why(*args, **options):
            run.asked = args[2], options
            return found

        monkeypatch.setattr(cli, "why", why)
        monkeypatch.setattr(cli, "require_broker", lambda _: None)
        context = CLIContext(app, no_color=True, workdir=None)
        return CliRunner().invoke(lanes, ["why", *arguments], obj=context)

    return run


def test_the_answer_and_what_to_do(run):
    """A line each."""
    done = run("4f1c")
    assert done.exit_code == 0
    assert done.output == f"{KNOWN}\n{KNOWN.remedy}\n"
    assert run.asked == ("4f1c", {"lane": None, "sent_at": None, "timeout": 1.0})


def test_nobody_knows_of_it(run):
    """Code 3, so that a script can tell it from an answer."""
    done = run("4f1c", found=Why("4f1c", Cause.UNKNOWN, certain=False, detail="no worker answers"))
    assert done.exit_code == 3
    assert "4f1c is unknown; no worker answers" in done.output


def test_json_has_every_field(run):
    """And the sentence."""
    data = json.loads(run("4f1c", "--json").output)
    assert data == KNOWN.to_json()
    assert {"cause", "limit", "since", "position", "starts_in", "certain", "detail", "remedy"} <= (
        data.keys()
    )


@pytest.mark.parametrize(
    ("given", "instant"),
    [("1769862600.5", 1769862600.5), ("2026-01-31T12:30:00+00:00", 1769862600.0)],
)
def test_when_it_was_sent(run, given, instant):
    """As text or as a number."""
    run("4f1c", "--lane", "critic", "--sent", given)
    assert run.asked[1]["sent_at"] == instant
    assert "is no time" in run("4f1c", "--sent", "yesterday").output
