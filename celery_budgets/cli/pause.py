"""``celery lanes pause``: no further calls of a lane, until it is resumed.

Runs in the operator's terminal.
"""

from __future__ import annotations

import click

from celery_budgets.cli.lane_commands import of_workers, tell

__all__ = ["command"]


@click.command("pause")
@of_workers
def command(ctx: click.Context, *, lane: str, workers: list[str], timeout: float) -> None:
    """Let each worker that serves LANE start no further call of it.

    Calls that run end in peace; the others wait at the broker. It holds through a reconnect,
    until `celery lanes resume` or the end of the worker.

    Exits with 1 when a worker refuses, does not answer, or none serves the lane.

    \b
    Examples:
      $ celery -A tools lanes pause file_write
      $ celery -A tools lanes pause file_write -d file_write@host1
    """
    tell(ctx, "pause_lane", lane, workers, timeout)
