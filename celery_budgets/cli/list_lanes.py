"""``celery lanes list``: the table of lanes, as configured."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from celery_budgets.config.settings import settings_of
from celery_budgets.model.lanes import Lane, Lanes
from celery_budgets.units import format_duration, format_size

__all__ = ["command"]

#: Columns where the output is not a terminal, so that no line is folded.
PIPE_WIDTH = 200


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: seconds and bytes.")
@click.pass_context
def command(ctx: click.Context, *, as_json: bool = False) -> None:
    """List the lanes: queue, concurrency, limits and tools of each.

    \b
    Examples:
      $ celery -A tools lanes list
      $ celery -A tools lanes list --json
    """
    table = settings_of(ctx.obj.app).lanes
    if as_json:
        click.echo(json.dumps([_facts(lane, table) for lane in table.values()], indent=2))
    else:
        _print_table(table, no_color=ctx.obj.no_color)


def _tools(lane: Lane, table: Lanes) -> list[str]:
    return [tool for tool, name in table.tools.items() if name == lane.name]


def _facts(lane: Lane, table: Lanes) -> dict[str, Any]:
    budget = lane.budget
    return {
        "lane": lane.name,
        "queue": lane.queue,
        "concurrency": lane.concurrency,
        "soft_time_limit": budget.soft_time_limit,
        "hard_time_limit": budget.hard_time_limit,
        "rss_warning": budget.rss_warning,
        "max_rss": budget.max_rss,
        "idempotent": lane.idempotent,
        "default": lane is table.default,
        "tools": _tools(lane, table),
    }


def _print_table(lanes: Lanes, *, no_color: bool | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    total = sum(lane.concurrency for lane in lanes.values())
    table = Table(
        caption=f"concurrency {total} of {lanes.global_concurrency}", caption_justify="left"
    )
    for heading in ("lane", "queue"):
        table.add_column(heading, no_wrap=True)
    for heading in ("concurrency", "soft limit", "hard limit", "memory warning", "memory limit"):
        table.add_column(heading, justify="right")
    table.add_column("tools")
    for lane in lanes.values():
        table.add_row(*(Text(cell) for cell in _cells(lane, lanes)))
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(width=width, no_color=no_color or None).print(table)


def _cells(lane: Lane, lanes: Lanes) -> list[str]:
    tools = _tools(lane, lanes)
    if lane is lanes.default:
        tools.append("everything else")
    return [
        lane.name,
        lane.queue,
        str(lane.concurrency),
        format_duration(lane.budget.soft_time_limit),
        format_duration(lane.budget.hard_time_limit),
        format_size(lane.budget.rss_warning),
        format_size(lane.budget.max_rss),
        ", ".join(tools) or "none",
    ]
