"""``celery lanes status``: the current state of each lane on each worker."""

from __future__ import annotations

import json

import click

from celery_budgets.cli.findings import require_broker
from celery_budgets.cli.options import seconds_option
from celery_budgets.config.settings import settings_of
from celery_budgets.sending.remote_control import Inspection
from celery_budgets.sending.status.overview import Overview

__all__ = ["command"]


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: seconds and bytes.")
@seconds_option("--timeout", 1.0, "Seconds that workers have to answer.")
@click.pass_context
def command(ctx: click.Context, *, as_json: bool, timeout: float) -> None:
    """Show each lane of each worker: slots, calls, durations, memory, gate, alerts.

    Percentiles cover all calls since the worker started. Workers that do not answer and lanes
    that no worker serves are listed below the table.

    Exits with 0, or with 1 when no worker answers.

    \b
    Examples:
      $ celery -A tools lanes status
      $ celery -A tools lanes status --json --timeout 5
    """
    app = ctx.obj.app
    lanes = settings_of(app).lanes
    require_broker(app)
    overview = Overview.of(Inspection(app).ask(timeout), lanes)
    if as_json:
        click.echo(json.dumps(overview.to_json(), indent=2))
    else:
        from celery_budgets.cli.lanes_table import drawn
        from celery_budgets.cli.terminal import console

        out = console(no_color=ctx.obj.no_color)
        out.print(drawn(overview, out.width))
    if not overview.answered:
        click.echo(f"Error: no worker answered within {timeout:g} s", err=True)
        ctx.exit(1)
