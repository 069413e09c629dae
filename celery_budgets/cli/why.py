"""``celery lanes why``: why one call does not run, or what became of it.

Runs in the operator's terminal.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click

from celery_budgets.cli.findings import require_broker
from celery_budgets.cli.options import seconds_option
from celery_budgets.model.why import Cause
from celery_budgets.sending.remote_control import Inspection
from celery_budgets.sending.why.asking import why

__all__ = ["UNKNOWN_CODE", "command"]

#: Exit code where nobody knows of the call.
UNKNOWN_CODE = 3


def _instant(_ctx: Any, _parameter: Any, given: str | None) -> float | None:
    """Return an option's time in seconds since the epoch."""
    if given is None:
        return None
    try:
        return float(given)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(given).timestamp()
    except ValueError:
        raise click.BadParameter(
            f"{given!r} is no time: write 2026-01-31T12:30:00, or seconds since the epoch"
        ) from None


@click.command("why")
@click.argument("task_id")
@click.option("--lane", metavar="LANE", help="Its lane, if known; for RabbitMQ, with --sent.")
@click.option("--sent", "sent_at", metavar="TIME", callback=_instant, help="When it was sent.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: seconds since the epoch.")
@seconds_option("--timeout", 1.0, "Seconds that workers have to answer.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    task_id: str,
    lane: str | None,
    sent_at: float | None,
    as_json: bool,
    timeout: float,
) -> None:
    """Say why the call TASK_ID does not run, or what became of it, and what to do.

    Exits with 0, or with 3 when nobody knows of it.

    \b
    Examples:
      $ celery -A tools lanes why 4f1c2a5e-0a44-4b7c-9f9b-2a1d6f0c5b11
      $ celery -A tools lanes why 4f1c2a5e-0a44-4b7c-9f9b-2a1d6f0c5b11 --json
    """
    app = ctx.obj.app
    require_broker(app)
    found = why(app, Inspection(app), task_id, lane=lane, sent_at=sent_at, timeout=timeout)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        click.echo(f"{found}\n{found.remedy}")
    if found.cause is Cause.UNKNOWN:
        ctx.exit(UNKNOWN_CODE)
