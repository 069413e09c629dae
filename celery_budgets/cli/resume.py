"""``celery lanes resume``: go on with a lane that was paused.

Runs in the operator's terminal.
"""

from __future__ import annotations

import click

from celery_budgets.cli.lane_commands import of_workers, tell

__all__ = ["command"]


@click.command("resume")
@of_workers
def command(ctx: click.Context, *, lane: str, workers: list[str], timeout: float) -> None:
    """Let each worker that serves LANE go on after `celery lanes pause`.

    Exits with 1 when a worker refuses, does not answer, or none serves the lane.

    \b
    Examples:
      $ celery -A tools lanes resume file_write
      $ celery -A tools lanes resume file_write -d file_write@host1
    """
    tell(ctx, "resume_lane", lane, workers, timeout)
