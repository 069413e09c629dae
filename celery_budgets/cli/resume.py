"""``celery lanes resume``: start calls of a paused lane again.

Runs in the operator's terminal.
"""

from __future__ import annotations

import click

from celery_budgets.cli.lane_commands import of_workers, run_on_workers

__all__ = ["command"]


@click.command("resume")
@of_workers
def command(ctx: click.Context, *, lane: str, workers: list[str], timeout: float) -> None:
    """Resume LANE, after `celery lanes pause`, on each worker that serves it.

    Exits with 1 when a worker refuses, does not answer, or none serves the lane.

    \b
    Examples:
      $ celery -A tools lanes resume file_write
      $ celery -A tools lanes resume file_write -d file_write@host1
    """
    run_on_workers(ctx, "resume_lane", lane, workers, timeout)
