"""Builds the ``celery worker`` command that serves lanes of the app named by ``-A``."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from celery_budgets.config.settings import settings_of
from celery_budgets.model.lanes import Lane

__all__ = [
    "lane_argument", "lanes_argument", "python_command", "scaled", "shell_line",
    "worker_arguments",
]  # fmt: skip

#: Global options of ``celery`` that are passed on to a worker, by the name of their parameter.
_GLOBAL_OPTIONS = {
    "broker": "--broker",
    "result_backend": "--result-backend",
    "loader": "--loader",
    "config": "--config",
}


def lane_argument(ctx: click.Context, name: str) -> Lane:
    """Return the lane *name* of the app on this command line.

    Raises:
        ConfigurationError: The configuration is wrong, or has no such lane.
        click.UsageError: The app was not named with ``-A``.
    """
    _app_name(ctx)
    return settings_of(ctx.obj.app).lanes[name]


def lanes_argument(ctx: click.Context) -> list[Lane]:
    """Return all lanes of the app on this command line.

    Raises:
        ConfigurationError: The configuration is wrong.
        click.UsageError: The app was not named with ``-A``.
    """
    _app_name(ctx)
    return list(settings_of(ctx.obj.app).lanes.values())


def worker_arguments(
    ctx: click.Context, lanes: Sequence[Lane], extra: Sequence[str] = ()
) -> list[str]:
    """Return the arguments of ``celery`` for a worker of *lanes*.

    The worker derives concurrency and prefetch from its queues. A worker of a single lane is
    named after the lane, so that the workers of all lanes can run on one host.

    Raises:
        click.UsageError: The app was not named with ``-A``.
    """
    queues = ",".join(lane.queue for lane in lanes)
    chosen = [*_global_arguments(ctx), "worker", "-Q", queues]
    named = any(argument.startswith(("-n", "--hostname")) for argument in extra)
    if len(lanes) == 1 and not named:
        chosen += ["-n", f"{lanes[0].name}@%h"]
    return [*chosen, *extra]


def python_command(arguments: Sequence[str]) -> list[str]:
    """Return ``celery ARGUMENTS`` as a command of this interpreter, independent of ``PATH``."""
    return [sys.executable, "-m", "celery", *arguments]


def shell_line(arguments: Sequence[str]) -> str:
    """Return ``celery ARGUMENTS`` as a shell command."""
    return shlex.join(["celery", *arguments])


def scaled(lane: Lane, scale: float) -> int:
    """Return the concurrency of *lane* at *scale* (0 to 1), at least 1."""
    return max(1, math.floor(lane.concurrency * scale))


def _app_name(ctx: click.Context) -> str:
    name = ctx.find_root().params.get("app")
    # Celery puts its own object here where a program calls app.start() itself.
    if not isinstance(name, str):
        raise click.UsageError("name the app, so that workers find it: celery -A MODULE lanes ...")
    return name


def _global_arguments(ctx: click.Context) -> list[str]:
    root = ctx.find_root()
    arguments = ["-A", _app_name(ctx)]
    for name, option in _GLOBAL_OPTIONS.items():
        if root.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            arguments += [option, str(root.params[name])]
    if root.get_parameter_source("workdir") is ParameterSource.COMMANDLINE:
        # Celery has changed into the directory already; a relative path would be resolved twice.
        arguments += ["--workdir", str(Path.cwd())]
    return arguments
