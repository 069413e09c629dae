"""``celery lanes health``: whether the workers of this host work; for probes.

Runs in a process of its own, which a probe or an operator starts.
"""

from __future__ import annotations

import click
from kombu.exceptions import OperationalError

from celery_budgets.cli.lane_commands import destination_option
from celery_budgets.cli.options import seconds_option
from celery_budgets.sending.health import health

__all__ = ["EXIT_BROKEN", "EXIT_SILENT", "command"]

#: A lane does not work, or one of several workers does not answer.
EXIT_BROKEN = 1
#: No worker answers, or the broker does not.
EXIT_SILENT = 2


@click.command("health")
@destination_option("Ask")
@seconds_option("--timeout", 5.0, "Seconds that workers have to answer.")
@click.pass_context
def command(ctx: click.Context, *, workers: list[str], timeout: float) -> None:
    """Tell whether the workers of this host that serve the app do their work.

    A worker works if it consumes the queue of each lane, starts what waits there while it has
    free slots, and its pool has its processes. A lane that an operator or the memory gate has
    paused works, and is said to be paused.

    Exits with 0 when all work, with 1 when a lane does not, or one of several workers does not
    answer, with 2 when no worker answers, or the broker does not.

    \b
    Examples:
      $ celery -A tools lanes health
      $ celery -A tools lanes health -d critic@worker-1
    """
    try:
        found = health(ctx.obj.app, workers, timeout)
    except (OperationalError, OSError) as exc:
        click.echo(f"Error: broker: {exc}", err=True)
        ctx.exit(EXIT_SILENT)
    for name, parts in found.by_worker.items():
        for part in parts:
            words = "works" if part.works else "DOES NOT WORK"
            click.echo(f"{name} {part.part}: {words}: {part.text}")
    for name in found.silent:
        click.echo(f"Error: no answer from {name} within {timeout:g} s", err=True)
    if not found.by_worker:
        if not found.silent:
            click.echo("Error: no worker with budgets answered on this host", err=True)
        ctx.exit(EXIT_SILENT)
    if not found.works:
        ctx.exit(EXIT_BROKEN)
