"""``celery lanes up``: one worker per lane, under one supervisor."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from celery_budgets.cli.invocation import python_command, scaled, shell_line, worker_arguments
from celery_budgets.cli.lanes_file import NAME, WorkerPlan, names_of, read_plans
from celery_budgets.cli.printer import Printer
from celery_budgets.cli.supervisor import Supervisor, stopped_by_signals
from celery_budgets.cli.worker_options import WithWorkerOptions, check_options, worker_options
from celery_budgets.config.settings import settings_of
from celery_budgets.embedded import EmbeddedBroker, no_server_error
from celery_budgets.errors import ConfigurationError
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
    path = file if file is not None else _file_beside(ctx)

    def planned(reload: int = 0) -> tuple[dict[str, list[str]], dict[str, Mapping[str, str]]]:
        """Return the arguments of each worker, and its variables."""
        plans = read_plans(path, settings_of(ctx.obj.app).lanes) if path is not None else {}
        arguments: dict[str, list[str]] = {}
        environments: dict[str, Mapping[str, str]] = {}
        for lane in chosen:
            plan = plans.get(lane.name, WorkerPlan())
            check_options(ctx, plan.options, f"{path}: options of {lane.name}")
            for name in names_of(lane.name, plan):
                node = f"{name}-r{reload}" if reload else name
                own = _planned_options(plan, lane, scale)
                own += ["-n", f"{node}@%h"] if node != lane.name else []
                # The command line has the last word.
                every = [*own, *plan.options, *options]
                arguments[name] = _arguments(ctx, lane, loglevel, every)
                environments[name] = plan.environment
        return arguments, environments

    arguments, environments = planned()
    printer = Printer(arguments, color=_color(ctx))

    def reloaded(number: int) -> tuple[dict[str, list[str]], dict[str, Mapping[str, str]]]:
        try:
            lines, variables = planned(number)
        except click.UsageError as exc:
            raise ConfigurationError(exc.format_message()) from exc
        return {name: python_command(line) for name, line in lines.items()}, variables

    with _broker(ctx, printer, embedded=embedded_broker) as environment:
        for name, line in arguments.items():
            printer.say(name, f"$ {shell_line(line)}")
        supervisor = Supervisor(
            {name: python_command(line) for name, line in arguments.items()},
            say=printer.say,
            environment=environment,
            environments=environments,
            reload=reloaded,
            longest_call=max(lane.budget.hard_time_limit for lane in chosen),
        )
        with stopped_by_signals(supervisor):
            code = supervisor.run()
    ctx.exit(code)


def _lanes(app: Any, names: Sequence[str]) -> list[Lane]:
    lanes = settings_of(app).lanes
    return [lanes[name] for name in dict.fromkeys(names)] or list(lanes.values())


def _arguments(ctx: click.Context, lane: Lane, loglevel: str, options: Sequence[str]) -> list[str]:
    # After ours: of two log levels the last one counts.
    return worker_arguments(ctx, [lane], ["-l", loglevel, *options])


def _planned_options(plan: WorkerPlan, lane: Lane, scale: float) -> list[str]:
    options: list[str] = []
    if scale < 1 or plan.concurrency is not None:
        most = plan.concurrency or lane.concurrency
        options += ["-c", str(min(most, scaled(lane, scale)))]
    if plan.pool is not None:
        options += ["-P", plan.pool]
    return options


def _file_beside(ctx: click.Context) -> Path | None:
    """Return the file in the folder of the app's module, if there is one."""
    module = str(ctx.find_root().params.get("app") or "").partition(":")[0]
    for name in (module, module.rpartition(".")[0]):
        found = getattr(sys.modules.get(name), "__file__", None)
        if found is not None:
            path = Path(found).with_name(NAME)
            return path if path.is_file() else None
    return None


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
