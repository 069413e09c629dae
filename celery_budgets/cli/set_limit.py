"""``celery lanes set``: change the concurrency of a lane on running workers."""

from __future__ import annotations

import click

from celery_budgets.cli.lane_commands import of_workers, run_on_workers

__all__ = ["command"]


@click.command("set")
@of_workers
@click.option("--concurrency", type=int, required=True, help="Calls that may run at once.")
def command(
    ctx: click.Context, *, lane: str, workers: list[str], timeout: float, concurrency: int
) -> None:
    """Set how many calls of LANE each worker that serves it runs at once.

    The limit applies immediately and lasts until the worker restarts; change the lane's
    definition as well. Calls that already run above a lower limit finish. A pool that is too
    small grows; a pool never shrinks.

    Exits with 1 when a worker refuses, does not answer, or none serves the lane.

    \b
    Examples:
      $ celery -A tools lanes set file_read --concurrency 8
      $ celery -A tools lanes set critic --concurrency 2 -d critic@host1 -d critic@host2
    """
    run_on_workers(ctx, "lane_limit", lane, workers, timeout, concurrency=concurrency)
