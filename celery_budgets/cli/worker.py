"""``celery lanes worker LANE``: the worker of one lane, in this process."""

from __future__ import annotations

import os
import sys

import click

from celery_budgets.cli.invocation import (
    lane_argument,
    python_command,
    shell_line,
    worker_arguments,
)

__all__ = ["command"]


@click.command("worker", context_settings={"ignore_unknown_options": True})
@click.argument("lane")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--print", "only_print", is_flag=True, help="Print the command and do not run it.")
@click.pass_context
def command(ctx: click.Context, *, lane: str, arguments: tuple[str, ...], only_print: bool) -> None:
    """Print the `celery worker` command that serves LANE, and become that worker.

    Everything after LANE goes to `celery worker`.

    \b
    Examples:
      $ celery -A tools lanes worker file_read
      $ celery -A tools lanes worker file_read -- -l INFO -P threads
      $ celery -A tools lanes worker --print file_read
    """
    chosen = worker_arguments(ctx, lane_argument(ctx, lane), arguments)
    click.echo(shell_line(chosen))
    if only_print:
        return
    # exec drops what Python has not written yet.
    sys.stdout.flush()
    program = python_command(chosen)
    os.execv(program[0], program)
