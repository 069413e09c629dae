"""``celery lanes pause``: stop starting calls of a lane, until it is resumed.

Runs in the operator's terminal.
"""

from __future__ import annotations

import click

from celery_budgets.cli.lane_commands import of_workers, run_on_workers

__all__ = ["command"]


@click.command("pause")
@of_workers
def command(ctx: click.Context, *, lane: str, workers: list[str], timeout: float) -> None:
    """Pause LANE on each worker that serves it: no new calls start.

    Running calls finish; further calls wait at the broker. The pause survives a reconnect and
    lasts until `celery lanes resume` or a restart of the worker.

    Exits with 1 when a worker refuses, does not answer, or none serves the lane.

    \b
    Examples:
      $ celery -A tools lanes pause file_write
      $ celery -A tools lanes pause file_write -d file_write@host1
    """
    run_on_workers(ctx, "pause_lane", lane, workers, timeout)
