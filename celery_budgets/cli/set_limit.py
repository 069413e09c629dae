"""``celery lanes set``: another concurrency for a lane, in workers that run."""

from __future__ import annotations

import click

from celery_budgets.cli.lane_commands import of_workers, tell

__all__ = ["command"]


@click.command("set")
@of_workers
@click.option("--concurrency", type=int, required=True, help="Calls that may run at once.")
def command(
    ctx: click.Context, *, lane: str, workers: list[str], timeout: float, concurrency: int
) -> None:
    """Set how many calls of LANE each worker that serves it runs at once.

    It holds at once and until the worker ends: put it into the lane's definition as well. Calls
    above a lower limit run to their end. A pool that is too small grows; none ever shrinks.

    Exits with 1 when a worker refuses, does not answer, or none serves the lane.

    \b
    Examples:
      $ celery -A tools lanes set file_read --concurrency 8
      $ celery -A tools lanes set critic --concurrency 2 -d critic@host1 -d critic@host2
    """
    tell(ctx, "lane_limit", lane, workers, timeout, concurrency=concurrency)
