"""``celery lanes stack``: where running calls are, without stopping them.

Runs in the operator's terminal.
"""

from __future__ import annotations

import json

import click

from celery_budgets.cli.findings import require_broker
from celery_budgets.cli.lane_commands import why_silent
from celery_budgets.cli.options import seconds_option
from celery_budgets.model.kill import CallStack
from celery_budgets.model.stack import Stack
from celery_budgets.sending.remote_control import Inspection
from celery_budgets.sending.stacks import stacks
from celery_budgets.units import format_duration

__all__ = ["command"]


@click.command("stack")
@click.argument("task_id", required=False)
@click.option("--lane", metavar="LANE", help="Show the running calls of this lane.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: seconds.")
@seconds_option("--timeout", 1.0, "Seconds that workers have to answer.")
@click.pass_context
def command(
    ctx: click.Context, *, task_id: str | None, lane: str | None, as_json: bool, timeout: float
) -> None:
    """Show where the running call TASK_ID is, or each one of a lane.

    The calls go on running. Of each worker at most 100 are shown.

    Exits with 0, or with 1 when no such call runs on a worker that answers.

    \b
    Examples:
      $ celery -A tools lanes stack 4f1c2a5e-0a44-4b7c-9f9b-2a1d6f0c5b11
      $ celery -A tools lanes stack --lane critic
    """
    if (task_id is None) == (lane is None):
        raise click.UsageError("name one call by its id, or a lane by --lane")
    app = ctx.obj.app
    require_broker(app)
    found, replies = stacks(app, Inspection(app), task_id=task_id, lane=lane, timeout=timeout)
    if as_json:
        click.echo(json.dumps([one.to_json() for one in found], indent=2))
    else:
        click.echo("\n\n".join(_drawn(one) for one in found)) if found else None
    for name in replies.silent:
        click.echo(why_silent(name, replies.plain), err=True)
    if not found:
        what = f"call {task_id}" if task_id is not None else f"call of lane {lane}"
        click.echo(f"Error: no {what} runs on a worker that answered", err=True)
        ctx.exit(1)


def _drawn(call: CallStack) -> str:
    """Return a call and its frames as text; the source stands here only if it is on this host."""
    lines = [
        f"{call.task_id} {call.task} (lane {call.lane}) on {call.worker}, "
        f"for {format_duration(round(call.seconds, 1))}"
    ]
    stack = call.stack
    if stack is None:
        return "\n".join([*lines, "  not known: it has just ended, or budgets_stacks is False"])
    lines += stack.lines()
    for frames in stack.others:
        lines += ["Another thread of its process:", *Stack(frames, stack.moment).lines()]
    return "\n".join(lines)
