"""``celery lanes limits``: limits over the fleet, what is in use of them, and changes to them.

Runs in the operator's terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from celery_budgets.cli.terminal import console
from celery_budgets.sending.limits.changes import (
    places_of,
    release_holder,
    reset_limit,
    set_limit,
)
from celery_budgets.sending.limits.overview import LimitView, overview
from celery_budgets.units import format_duration

__all__ = ["command"]

COLUMNS = (
    "limit", "key", "in use", "of", "rate", "rate left", "waiting", "oldest wait", "state",
)  # fmt: skip
#: Holders of one limit that the table shows.
MOST_HOLDERS = 20


@contextmanager
def _redis_errors() -> Iterator[None]:
    from redis.exceptions import RedisError

    try:
        yield
    except RedisError as exc:
        raise click.ClickException(f"the Redis of the limits does not answer: {exc}") from exc


@click.group("limits", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; durations are seconds.")
@click.pass_context
def command(ctx: click.Context, *, as_json: bool) -> None:
    """Show the limits over the fleet: what is in use, who holds it, and who waits.

    Of a limit with a key, those keys that are in use. "changed" is what an operator has set; it
    holds until `limits reset`.

    Exits with 0, or with 1 when the Redis of the limits does not answer.

    \b
    Examples:
      $ celery -A tools lanes limits
      $ celery -A tools lanes limits --json
      $ celery -A tools lanes limits set openai --concurrency 5 --rate 60/m
    """
    if ctx.invoked_subcommand is not None:
        return
    with _redis_errors():
        views = overview(ctx.obj.app)
    if as_json:
        click.echo(json.dumps([view.to_json() for view in views], indent=2))
        return
    if not views:
        click.echo("no limit is in use, and none without a key is configured")
        return
    console(no_color=ctx.obj.no_color).print(_table(views))
    for view in views:
        _print_holders(view)


@command.command("set")
@click.argument("name")
@click.option("--concurrency", type=int, help="Calls that may run at once.")
@click.option("--rate", help="Calls that may start, such as 300/m.")
@click.pass_context
def set_command(
    ctx: click.Context, *, name: str, concurrency: int | None, rate: str | None
) -> None:
    """Set how much the limit NAME allows, in all processes at once.

    It holds until `limits reset NAME`, also over restarts, because it stands in Redis. Calls that
    already run above a lower limit finish. It can change what the limit has, and adds nothing.

    \b
    Examples:
      $ celery -A tools lanes limits set openai --concurrency 5 --rate 60/m
    """
    if concurrency is None and rate is None:
        raise click.UsageError("give --concurrency, --rate, or both")
    with _redis_errors():
        set_limit(ctx.obj.app, name, concurrency=concurrency, rate=rate)
    parts = [f"concurrency {concurrency}"] * (concurrency is not None)
    parts += [f"rate {rate}"] * (rate is not None)
    click.echo(f"{name}: {', '.join(parts)}, until: limits reset {name}")


@command.command("reset")
@click.argument("name")
@click.pass_context
def reset_command(ctx: click.Context, *, name: str) -> None:
    """Take back what `limits set` has set for the limit NAME.

    \b
    Examples:
      $ celery -A tools lanes limits reset openai
    """
    with _redis_errors():
        found = reset_limit(ctx.obj.app, name)
    click.echo(f"{name}: as configured again" if found else f"{name}: nothing was set")


@command.command("release")
@click.argument("holder")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def release_command(ctx: click.Context, *, holder: str, yes: bool) -> None:
    """Take the places of HOLDER away, which `lanes limits` names.

    For a holder that is gone, whose lease would end by itself. One that lives takes its places
    again where there is still room; else its call is ended.

    Exits with 0, or with 1 when there is no such holder.

    \b
    Examples:
      $ celery -A tools lanes limits release worker-1.4711.5f2c9d1e:17
    """
    with _redis_errors():
        held = places_of(ctx.obj.app, holder)
        if not held:
            raise click.ClickException(f"{holder} holds no place; see lanes limits")
        names = ", ".join(view.title for view in held)
        if not yes:
            click.confirm(f"take the places of {holder} away ({names})?", abort=True)
        release_holder(ctx.obj.app, holder)
    click.echo(f"{holder}: released: {names}")


def _table(views: Sequence[LimitView]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for column in COLUMNS:
        right = column not in ("limit", "key", "rate", "state")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for view in views:
        own = view.name.startswith("@")
        cells = (
            view.title if own else view.name, "" if own else view.key,
            str(view.in_use) if view.limit is not None else "", _or(view.limit), view.rate or "",
            _or(view.rate_left), str(view.waiting) if _has_line(view) else "",
            format_duration(round(view.oldest_wait, 1)) if view.oldest_wait is not None else "",
            _state(view),
        )  # fmt: skip
        table.add_row(*map(Text, cells))  # a key may look like markup
    return table


def _has_line(view: LimitView) -> bool:
    """Return whether who waits stands in line, in Redis; for a rate without a key nobody does."""
    return view.limit is not None or bool(view.key) or bool(view.waiting)


def _or(value: Any) -> str:
    return "" if value is None else str(value)


def _state(view: LimitView) -> str:
    states = []
    if view.closed:
        states.append(f"closed for {format_duration(round(view.closed, 1))}")
    if view.changed is not None:
        at = datetime.fromtimestamp(view.changed.at)
        states.append(f"changed by {view.changed.by}, {at:%Y-%m-%d %H:%M}")
    return "; ".join(states)


def _print_holders(view: LimitView) -> None:
    for holder in view.holders[:MOST_HOLDERS]:
        places = f"{holder.places} places" if holder.places > 1 else "1 place"
        until = format_duration(round(max(0.0, holder.seconds), 1))
        how = "is offered" if holder.offered else "holds"
        click.echo(f"{view.title}: {holder.name} {how} {places}, lease for {until}")
    more = len(view.holders) - MOST_HOLDERS
    if more > 0:
        click.echo(f"{view.title}: and {more} more; see --json")
