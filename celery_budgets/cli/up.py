"""``celery lanes up``: one worker per lane, under one supervisor."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from celery_budgets.cli.invocation import python_command, shell_line
from celery_budgets.cli.lanes_file import NAME
from celery_budgets.cli.printer import Printer
from celery_budgets.cli.supervisor import Supervisor, stopped_by_signals
from celery_budgets.cli.worker_options import WithWorkerOptions, worker_options
from celery_budgets.cli.worker_plans import WorkerPlans
from celery_budgets.config.settings import settings_of
from celery_budgets.embedded import EmbeddedBroker, no_server_error
from celery_budgets.model.lanes import Lane

__all__ = ["command"]


def _part(_ctx: click.Context, _parameter: click.Parameter, value: float) -> float:
    # click.FloatRange lets nan through.
    if not 0 < value <= 1:
        raise click.BadParameter(f"{value:g} must be above 0 and at most 1")
    return value


@click.command("up", cls=WithWorkerOptions, options_metavar="[OPTIONS] [-- WORKER_OPTIONS]")
@click.option("--lane", "names", multiple=True, metavar="NAME", help="Only this lane; repeatable.")
@click.option(
    "--concurrency-scale",
    "scale",
    type=float,
    callback=_part,
    default=1.0,
    show_default=True,
    help="Share of each lane's concurrency to run here, above 0 and at most 1.",
)
@click.option(
    "--embedded-broker", is_flag=True, help="Start a private broker, and stop it at the end."
)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"How to run the workers of each lane; default: {NAME} beside the app, if there is one.",
)
@click.option("-l", "--loglevel", default="INFO", show_default=True, help="Log level of workers.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    names: tuple[str, ...],
    scale: float,
    embedded_broker: bool,
    file: Path | None,
    loglevel: str,
) -> None:
    """Run one worker per lane until Ctrl-C.

    A worker that ends is restarted after 1 s, then 2 s, and so on up to 30 s, without a limit
    on attempts. Ctrl-C and SIGTERM stop the workers after their running calls have finished; a
    second one kills the workers.

    SIGHUP reads lanes.toml again and replaces the workers one by one, each when its successor is
    ready; where it comes from a terminal that hangs up, it stops them.

    Options after -- are passed to every worker. They are those of `celery worker`, except those
    that set its queues, its name and its concurrency.

    Exits with 0 when all workers stopped by themselves, with 1 when one had to be killed or
    the configuration is wrong.

    \b
    Examples:
      $ celery -A tools lanes up --embedded-broker
      $ celery -A tools lanes up --lane critic --lane file_read
      $ celery -A tools lanes up --concurrency-scale 0.5 --loglevel WARNING
      $ celery -A tools lanes up -- -E -P threads
    """
    chosen = _lanes(ctx.obj.app, names)
    options = worker_options(ctx, scaled=scale < 1)
    plans = WorkerPlans(ctx, chosen, file, scale=scale, loglevel=loglevel, options=options)
    arguments, environments = plans.read()
    printer = Printer(arguments, color=_color(ctx))
    with _broker(ctx, printer, embedded=embedded_broker) as environment:
        for name, line in arguments.items():
            printer.say(name, f"$ {shell_line(line)}")
        supervisor = Supervisor(
            {name: python_command(line) for name, line in arguments.items()},
            say=printer.say,
            environment=environment,
            environments=environments,
            reload=plans.again,
            longest_call=max(lane.budget.hard_time_limit for lane in chosen),
        )
        with stopped_by_signals(supervisor):
            code = supervisor.run()
    ctx.exit(code)


def _lanes(app: Any, names: Sequence[str]) -> list[Lane]:
    lanes = settings_of(app).lanes
    return [lanes[name] for name in dict.fromkeys(names)] or list(lanes.values())


@contextmanager
def _broker(ctx: click.Context, printer: Printer, *, embedded: bool) -> Iterator[dict[str, str]]:
    """Yield the environment of the workers; start the embedded broker where *embedded*.

    Raises:
        NoServerError: No broker is configured, or there is no server to start.
        click.UsageError: The command line names a broker as well.
    """
    environment = dict(os.environ)
    if not embedded:
        conf = ctx.obj.app.conf
        if not (conf.broker_url or conf.broker_read_url):
            raise no_server_error("no broker is configured, and --embedded-broker is not given")
        yield environment
        return
    if ctx.find_root().get_parameter_source("broker") is ParameterSource.COMMANDLINE:
        raise click.UsageError(
            "celery -b names a broker, and --embedded-broker starts one; drop one"
        )
    with EmbeddedBroker() as broker:
        addresses = {
            "CELERY_BROKER_URL": broker.url(0),
            "CELERY_RESULT_BACKEND": broker.url(1),
        }
        printer.say("", "broker started; for a second terminal:")
        for name, url in addresses.items():
            printer.say("", f"export {name}={url}")
        yield environment | addresses


def _color(ctx: click.Context) -> bool:
    return sys.stdout.isatty() and not ctx.obj.no_color and not os.environ.get("NO_COLOR")
