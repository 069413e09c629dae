"""``celery lanes kills``: where the calls hung that were killed in the last day.

Runs in the operator's terminal.
"""

from __future__ import annotations

import json
from datetime import datetime

import click

from celery_budgets.cli.findings import require_broker
from celery_budgets.cli.lane_commands import why_silent
from celery_budgets.cli.options import seconds_option
from celery_budgets.model.kill import grouped
from celery_budgets.sending.remote_control import Inspection
from celery_budgets.sending.stacks import kills

__all__ = ["command"]


@click.command("kills")
@click.option("--json", "as_json", is_flag=True, help="Print each kill as JSON, with its stack.")
@seconds_option("--timeout", 1.0, "Seconds that workers have to answer.")
@click.pass_context
def command(ctx: click.Context, *, as_json: bool, timeout: float) -> None:
    """Show the kills of the last day, grouped by where the calls were.

    A place is the innermost line of your own code, with what it called. Kills are remembered by
    each worker, and in the Redis of idempotency keys where there is one.

    Exits with 0, or with 1 when no worker answers and no Redis has any.

    \b
    Examples:
      $ celery -A tools lanes kills
      $ celery -A tools lanes kills --json
    """
    app = ctx.obj.app
    require_broker(app)
    found, replies = kills(app, Inspection(app), timeout)
    if as_json:
        click.echo(json.dumps([kill.to_json() for kill in found], indent=2))
    for group in () if as_json else grouped(found):
        last = datetime.fromtimestamp(group.last.at)
        click.echo(
            f"{group.sentence(len(found))}; last {last:%Y-%m-%d %H:%M:%S}: {group.last.task_id}"
        )
    for name in replies.silent:
        click.echo(why_silent(name, replies.plain), err=True)
    if not found and replies.by_worker and not as_json:
        click.echo("no call was killed in the last day")
    if not found and not replies.by_worker:
        click.echo(f"Error: no worker answered within {timeout:g} s", err=True)
        ctx.exit(1)
