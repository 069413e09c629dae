"""``celery lanes worker``: run the worker of one lane, of several, or of all."""

from __future__ import annotations

import os
import sys
from itertools import takewhile

import click

from celery_budgets.cli.invocation import (
    lane_argument,
    lanes_argument,
    python_command,
    shell_line,
    worker_arguments,
)
from celery_budgets.model.lanes import Lane

__all__ = ["command"]


@click.command("worker", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", metavar="[LANE]... [ARGUMENTS]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--all", "every", is_flag=True, help="Serve all lanes, each within its concurrency.")
@click.option("--print", "only_print", is_flag=True, help="Print the command without running it.")
@click.pass_context
def command(
    ctx: click.Context, *, arguments: tuple[str, ...], every: bool, only_print: bool
) -> None:
    """Print the `celery worker` command that serves LANE, and run it.

    Several lanes share one worker, each within its own concurrency. Everything after the lanes
    is passed to `celery worker`.

    \b
    Examples:
      $ celery -A tools lanes worker file_read
      $ celery -A tools lanes worker file_read critic
      $ celery -A tools lanes worker --all -- -l INFO -P threads
      $ celery -A tools lanes worker --print file_read
    """
    names = list(takewhile(_is_name, arguments))
    lanes = _chosen(ctx, names, every=every)
    chosen = worker_arguments(ctx, lanes, arguments[len(names) :])
    click.echo(shell_line(chosen))
    if only_print:
        return
    # exec discards output that Python has buffered.
    sys.stdout.flush()
    program = python_command(chosen)
    os.execv(program[0], program)


def _is_name(argument: str) -> bool:
    return not argument.startswith("-")


def _chosen(ctx: click.Context, names: list[str], *, every: bool) -> list[Lane]:
    """Return the lanes to serve.

    Raises:
        click.UsageError: Neither a lane nor ``--all`` is given, or both are.
    """
    if every and names:
        raise click.UsageError(f"--all is every lane, and {', '.join(names)} is named; drop one")
    if not every and not names:
        raise click.UsageError("name a lane, or give --all for every lane")
    if every:
        return lanes_argument(ctx)
    return [lane_argument(ctx, name) for name in dict.fromkeys(names)]
