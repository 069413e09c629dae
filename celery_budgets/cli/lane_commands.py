"""Sends a remote control command about one lane to its workers, and prints their answers.

Shared by ``celery lanes set``, ``pause`` and ``resume``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from celery_budgets.cli.findings import require_broker
from celery_budgets.cli.options import seconds_option
from celery_budgets.config.settings import settings_of
from celery_budgets.sending.lane_changes import change_lane, why_silent
from celery_budgets.sending.remote_control import Inspection

__all__ = ["destination_option", "of_workers", "run_on_workers", "why_silent"]


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
    changed = change_lane(
        app, command, lane, workers, timeout, inspection=Inspection(app), **arguments
    )
    for name, text in changed.done:
        click.echo(f"{name}: {text}")
    for name, text in changed.refused:
        click.echo(f"Error: {name}: {text}", err=True)
    for _, text in changed.missing:
        click.echo(f"Error: {text}", err=True)
    for _, text in changed.silent:
        click.echo(text, err=True)
    if not changed.sent and not changed.missing:
        text = f"no worker that serves {lane} answered within {timeout:g} s"
        click.echo(f"Error: {text}", err=True)
    if not changed.ok:
        ctx.exit(1)
