"""Sends a remote control command about one lane to its workers, and prints their answers.

Shared by ``celery lanes set``, ``pause`` and ``resume``. They first find out which workers serve
the lane, so that a missing answer is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from celery_budgets.cli.findings import require_broker
from celery_budgets.cli.options import seconds_option
from celery_budgets.config.settings import settings_of
from celery_budgets.sending.remote_control import Inspection, Replies

__all__ = ["destination_option", "of_workers", "run_on_workers", "why_silent"]

#: Seconds that workers have to apply the change, which may start pool processes.
CHANGE_SECONDS = 10.0


def of_workers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate *command* with the argument LANE and the options that select workers."""
    decorators = (
        click.argument("lane"),
        destination_option("Address"),
        seconds_option("--timeout", 1.0, "Seconds that workers have to answer."),
        click.pass_context,
    )  # fmt: skip
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def destination_option(does: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option that names workers as *workers*; *does* begins its help."""
    return click.option(
        "-d", "--destination", "workers", metavar="WORKER", multiple=True, callback=_names,
        help=f"{does} this worker only; repeatable, or separated by commas.",
    )  # fmt: skip


def _names(_ctx: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> list[str]:
    names = [name.strip() for text in given for name in text.split(",")]
    if not all(names):
        # An empty shell variable must not address all workers.
        raise click.BadParameter("a name is empty; leave the option out for all workers")
    return list(dict.fromkeys(names))


def run_on_workers(
    ctx: click.Context,
    command: str,
    lane: str,
    workers: Sequence[str],
    timeout: float,
    **arguments: Any,
) -> None:
    """Send *command* to the workers of *lane*, or to the named ones; print their answers.

    Exits with 1 when a worker refuses, when a worker that was named or serves the lane does not
    answer, and when no worker serves the lane.

    Args:
        ctx: Context of the CLI command.
        command: Name of the remote control command.
        lane: Name of the lane.
        workers: Names of the workers to address; empty: all that serve the lane.
        timeout: Seconds that workers have to answer.
        **arguments: Arguments of the remote control command, besides the lane.

    Raises:
        ConfigurationError: There is no such lane.
    """
    app = ctx.obj.app
    settings_of(app).lanes[lane]
    require_broker(app)
    inspection = Inspection(app)
    answers = inspection.ask(timeout)
    recipients = _recipients(answers, lane, workers)
    replies = Replies({}, ())
    if recipients:
        arguments = {"lane": lane, **arguments}
        replies = inspection.control(command, arguments, recipients, CHANGE_SECONDS)
    done = [_print_answer(name, command, answer) for name, answer in replies.by_worker.items()]
    missing = [*replies.silent, *(name for name in workers if name not in answers.by_worker)]
    for name in missing:
        plain = name in answers.plain
        text = why_silent(name, answers.plain) if plain else f"no answer from {name}"
        click.echo(f"Error: {text}", err=True)
    if not workers:
        for name in answers.silent:
            click.echo(why_silent(name, answers.plain), err=True)
    if not recipients and not missing:
        text = f"no worker that serves {lane} answered within {timeout:g} s"
        click.echo(f"Error: {text}", err=True)
    if missing or not done or not all(done):
        ctx.exit(1)


def _recipients(answers: Replies, lane: str, workers: Sequence[str]) -> list[str]:
    """Return the workers to address: of those that answered, *workers*, else the lane's."""
    if workers:
        return [name for name in workers if name in answers.by_worker]
    by_worker = answers.by_worker.items()
    return [name for name, answer in by_worker if lane in answer.get("lanes", ())]


def why_silent(worker: str, plain: Sequence[str]) -> str:
    """Return the message about a silent *worker*; *plain* ones replied, but without budgets."""
    if worker in plain:
        return f"{worker} runs without budgets, or with an older version of them"
    return f"no answer from {worker}: it hangs, was killed, or runs without budgets"


def _print_answer(worker: str, command: str, answer: Any) -> bool:
    """Print the answer of *worker* to *command*, and return whether it succeeded."""
    fields = answer if isinstance(answer, Mapping) else {"error": answer}
    if "ok" in fields:
        click.echo(f"{worker}: {fields['ok']}")
        return True
    text = fields.get("error", answer)
    if text == repr(KeyError(command)):
        # kombu.pidbox.Node.dispatch, where no such command is registered.
        text = f"it does not know {command}; it runs an older version of celery-budgets"
    click.echo(f"Error: {worker}: {text}", err=True)
    return False
