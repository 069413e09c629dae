"""``celery lanes check``: report every problem of an app at once, before a worker starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from celery_budgets.cli import findings
from celery_budgets.cli.findings import Finding
from celery_budgets.config.settings import settings_of
from celery_budgets.errors import ConfigurationError

__all__ = ["command"]


@click.command("check")
@click.option("--lane", metavar="NAME", help="Check this lane only; an unknown lane is a problem.")
@click.option("--no-broker", is_flag=True, help="Do not connect to the broker.")
@click.pass_context
def command(ctx: click.Context, *, lane: str | None, no_broker: bool) -> None:
    """Check the configuration, the tool table, the tasks and the broker.

    Prints one line per check or problem, each problem with its remedy. Exits with 0 when there is
    no problem, with 1 otherwise.

    \b
    Examples:
      $ celery -A tools lanes check
      $ celery -A tools lanes check --lane critic --no-broker
    """
    failed = 0
    for finding in _all_findings(ctx.obj.app, lane, broker=not no_broker):
        failed += not finding.ok
        verdict = (
            ctx.obj.style("ok  ", fg="green") if finding.ok else ctx.obj.style("FAIL", fg="red")
        )
        click.echo(f"{verdict}  {finding.subject:<13}  {finding.text}")
    if failed:
        click.echo(f"{failed} {'problem' if failed == 1 else 'problems'}")
        ctx.exit(1)


def _all_findings(app: Any, lane: str | None, *, broker: bool) -> Iterator[Finding]:
    app.loader.import_default_modules()
    app.finalize()
    unusable = findings.broker_address(app) if broker or app.conf.broker_url else []
    yield from _findings_of_lanes(app, lane, broker_usable=not unusable)
    yield from unusable
    if broker and not unusable:
        answers = findings.broker_answers(app)
        yield from answers
        if all(answer.ok for answer in answers):
            yield from findings.abandoned(app)
            yield from _findings_of_workers(app, lane)


def _findings_of_workers(app: Any, lane_name: str | None) -> Iterator[Finding]:
    try:
        lanes = settings_of(app).lanes
        lane = lanes[lane_name] if lane_name is not None else None
    except ConfigurationError:
        return  # the checks of lanes report it
    yield from findings.not_renewing(lanes, app, lane)


def _findings_of_lanes(
    app: Any, lane_name: str | None, *, broker_usable: bool
) -> Iterator[Finding]:
    try:
        settings = settings_of(app)
        lane = settings.lanes[lane_name] if lane_name is not None else None
    except ConfigurationError as exc:
        yield from (Finding(False, "configuration", problem) for problem in exc.problems)
        return
    yield from findings.python()
    yield from findings.configuration(settings, lane)
    yield from findings.queues(app)
    yield from findings.tools(settings.lanes, app, lane)
    yield from findings.tasks(settings.lanes, app, lane)
    if broker_usable:
        yield from findings.visibility(settings.lanes, app, lane)
