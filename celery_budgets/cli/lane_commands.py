"""Telling workers to change a lane, and printing what each says to it.

What ``celery lanes set``, ``pause`` and ``resume`` share. The workers that serve the lane are
asked for first: then it is known who has to answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from celery_budgets.cli.findings import require_broker
from celery_budgets.cli.options import seconds_option
from celery_budgets.config.settings import settings_of
from celery_budgets.sending.remote_control import Inspection, Replies

__all__ = ["of_workers", "tell", "why_silent"]

#: Seconds that workers have for the change itself: the processes of a pool start meanwhile.
CHANGE_SECONDS = 10.0


def of_workers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the argument LANE and the options that say which workers are told."""
    decorators = (
        click.argument("lane"),
        click.option(
            "-d", "--destination", "workers", metavar="WORKER", multiple=True,
            callback=_names, help="Tell this worker only; may be given again, or with commas.",
        ),
        seconds_option("--timeout", 1.0, "Seconds in which a worker has to be heard of."),
        click.pass_context,
    )  # fmt: skip
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def _names(_ctx: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> list[str]:
    names = [name.strip() for text in given for name in text.split(",")]
    if not all(names):
        # From an empty shell variable; all workers would be told.
        raise click.BadParameter("a name is empty; leave the option out to tell all workers")
    return list(dict.fromkeys(names))


def tell(
    ctx: click.Context,
    command: str,
    lane: str,
    workers: Sequence[str],
    timeout: float,
    **arguments: Any,
) -> None:
    """Tell the workers of *lane*, or the named ones; print what each says.

    Exits with 1 where one refuses, where one that was named or serves the lane does not answer,
    and where there is nobody to tell.

    Args:
        ctx: That of the command.
        command: Name of the remote control command.
        lane: Name of the lane.
        workers: The workers that are to be told; by default all that serve the lane.
        timeout: Seconds in which a worker has to be heard of.
        **arguments: Those of the command, beside the lane.

    Raises:
        ConfigurationError: There is no such lane.
    """
    app = ctx.obj.app
    settings_of(app).lanes[lane]
    require_broker(app)
    asking = Inspection(app)
    heard = asking.ask(timeout)
    told = _recipients(heard, lane, workers)
    said = Replies({}, ())
    if told:
        said = asking.tell(command, {"lane": lane, **arguments}, told, CHANGE_SECONDS)
    done = [_print_answer(name, command, answer) for name, answer in said.by_worker.items()]
    missing = [*said.silent, *(name for name in workers if name not in heard.by_worker)]
    for name in missing:
        text = why_silent(name, heard.plain) if name in heard.plain else f"no answer from {name}"
        click.echo(f"Error: {text}", err=True)
    if not workers:
        for name in heard.silent:
            click.echo(why_silent(name, heard.plain), err=True)
    if not told and not missing:
        text = f"no worker that serves {lane} answered within {timeout:g} s"
        click.echo(f"Error: {text}", err=True)
    if missing or not done or not all(done):
        ctx.exit(1)


def _recipients(heard: Replies, lane: str, workers: Sequence[str]) -> list[str]:
    """Return whom to tell: the named *workers*, else all that serve *lane*, of those heard of."""
    if workers:
        return [name for name in workers if name in heard.by_worker]
    answers = heard.by_worker.items()
    return [name for name, answer in answers if lane in answer.get("lanes", ())]


def why_silent(worker: str, plain: Sequence[str]) -> str:
    """Return what to say of a *worker* that did not answer; *plain* are those that replied."""
    if worker in plain:
        return f"{worker} runs without budgets, or with an older version of them"
    return f"no answer from {worker}: it hangs, was killed, or runs without budgets"


def _print_answer(worker: str, command: str, answer: Any) -> bool:
    """Print what *worker* says to *command*, and return whether it has done it."""
    said = answer if isinstance(answer, Mapping) else {"error": answer}
    if "ok" in said:
        click.echo(f"{worker}: {said['ok']}")
        return True
    text = said.get("error", answer)
    if text == repr(KeyError(command)):
        # kombu.pidbox.Node.dispatch, where no such command is registered.
        text = f"it does not know {command}; it runs an older version of celery-budgets"
    click.echo(f"Error: {worker}: {text}", err=True)
    return False
