"""``celery lanes drain``: have workers finish their calls and stop.

Runs in the operator's terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import click

from celery_budgets.cli.findings import require_broker
from celery_budgets.cli.lane_commands import destination_option
from celery_budgets.cli.options import seconds_option
from celery_budgets.sending.draining import Progress, drain, forecast, known_workers
from celery_budgets.units import format_duration

__all__ = ["command"]

#: What a worker needs besides its calls, seconds: to hear of the stop, and to leave the broker.
SPARE_SECONDS = 10.0
MOST_SHOWN = 5


@click.command("drain")
@destination_option("Drain")
@click.option("--no-wait", is_flag=True, help="Return at once; the workers stop by themselves.")
@click.option("--forecast", "only_forecast", is_flag=True, help="Only tell how long it would take.")
@seconds_option("--timeout", 5.0, "Seconds that workers have to answer.")
@click.pass_context
def command(
    ctx: click.Context, *, workers: list[str], no_wait: bool, only_forecast: bool, timeout: float
) -> None:
    """Have workers take no more work, finish their running calls, and stop.

    It prints what each worker waits for, until all have stopped. What they have not started goes
    back to its queue. Whatever supervises a worker may start it again.

    Exits with 0, or with 1 when a worker did not answer, or stopped answering while calls ran.

    \b
    Examples:
      $ celery -A tools lanes drain --forecast
      $ celery -A tools lanes drain -d critic@worker-1
    """
    app = ctx.obj.app
    require_broker(app)
    known, silent = (workers, []) if workers else known_workers(app, timeout)
    for name in silent:
        click.echo(f"Error: no answer from {name}", err=True)
    if not known:
        click.echo(f"Error: no worker with budgets answered within {timeout:g} s", err=True)
        ctx.exit(1)
    if only_forecast:
        silent = [*silent, *_tell(forecast(app, known, timeout), known)]
    else:
        # All of them at once; the first question tells them not to take more work.
        lost = [_print(each, wait=not no_wait)
                for each in drain(app, known, timeout, wait=not no_wait)]  # fmt: skip
        silent = [*silent, *(name for name in lost if name)]
    if silent:
        ctx.exit(1)


def _print(progress: Progress, *, wait: bool) -> str | None:
    """Print what a worker said; return its name if it is lost."""
    if progress.lost:
        click.echo(f"Error: no answer from {progress.worker}", err=True)
        return progress.worker
    running = progress.running
    if not running:
        click.echo(f"{progress.worker}: nothing runs; it stops")
        return None
    shown = ", ".join(
        f"{call['task']} {call['task_id']} ({format_duration(round(call['seconds'], 1))})"
        for call in running[:MOST_SHOWN]
    )
    more = f" and {len(running) - MOST_SHOWN} more" if len(running) > MOST_SHOWN else ""
    words = "waits for" if wait else "will stop after"
    click.echo(f"{progress.worker}: {words} {len(running)}: {shown}{more}")
    return None


def _tell(answers: Mapping[str, Any], asked: Sequence[str]) -> list[str]:
    """Print the forecasts; return the workers that have none."""
    longest: tuple[float, str] = (0.0, "")
    for name, answer in sorted(answers.items()):
        calls = answer["calls"]
        click.echo(f"{name}: {len(calls)} calls run{_within(calls)}")
        for call in sorted(calls, key=lambda call: -call["p95"])[:MOST_SHOWN]:
            again = "" if call["may_run_again"] else "; it must not run twice"
            age = format_duration(round(call["seconds"], 1))
            click.echo(f"  {call['task']} {call['task_id']} for {age}{_within([call])}{again}")
        longest = max(longest, *((hard, lane) for lane, hard in answer["lanes"].items()))
    missing = [name for name in asked if name not in answers]
    for name in missing:
        click.echo(f"Error: no answer from {name}", err=True)
    hard, lane = longest
    if lane:
        grace = math.ceil(hard + SPARE_SECONDS)
        click.echo(
            f"terminationGracePeriodSeconds: {grace} loses nothing: the longest hard limit is "
            f"{format_duration(hard)} (lane {lane}), and {format_duration(SPARE_SECONDS)} to spare"
        )
    return missing


def _within(calls: Sequence[Mapping[str, Any]]) -> str:
    if not calls:
        return ""
    median, p95, most = (
        format_duration(round(max(call[part] for call in calls), 1))
        for part in ("median", "p95", "at_most")
    )
    return f": 50 % chance to end in {median}, 95 % in {p95}, at most {most}"
