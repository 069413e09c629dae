"""The commands of the workers of ``celery lanes up``, by the command line and ``lanes.toml``.

Runs in the supervisor.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from celery_budgets.cli.invocation import python_command, scaled, worker_arguments
from celery_budgets.cli.lanes_file import NAME, WorkerPlan, names_of, read_plans
from celery_budgets.cli.worker_options import check_options
from celery_budgets.config.settings import settings_of
from celery_budgets.errors import ConfigurationError
from celery_budgets.model.lanes import Lane

__all__ = ["WorkerPlans"]


class WorkerPlans:
    """Plans the workers, at the start and at each reload.

    Args:
        ctx: Context of the command.
        lanes: The lanes to run.
        file: The file; ``None``: ``lanes.toml`` beside the app, if there is one.
        scale: Share of each lane's concurrency (0 to 1).
        loglevel: Log level of workers, unless their options name another.
        options: Options of ``celery worker`` for all workers.
    """

    def __init__(
        self,
        ctx: click.Context,
        lanes: Sequence[Lane],
        file: Path | None,
        *,
        scale: float,
        loglevel: str,
        options: Sequence[str],
    ) -> None:
        self._ctx = ctx
        self._lanes = lanes
        self._file = file or _file_beside(ctx)
        self._scale = scale
        self._loglevel = loglevel
        self._options = options

    def read(self, reload: int = 0) -> tuple[dict[str, list[str]], dict[str, Mapping[str, str]]]:
        """Return the arguments of ``celery`` for each worker, and its variables, by its name.

        Args:
            reload: Number of the reload, from 1 on; its workers run beside their predecessors,
                and so have other names.

        Raises:
            ConfigurationError: The file is wrong.
            click.UsageError: An option in it cannot be passed to each worker.
        """
        lanes = settings_of(self._ctx.obj.app).lanes
        plans = read_plans(self._file, lanes) if self._file is not None else {}
        arguments: dict[str, list[str]] = {}
        environments: dict[str, Mapping[str, str]] = {}
        for lane in self._lanes:
            plan = plans.get(lane.name, WorkerPlan())
            check_options(self._ctx, plan.options, f"{self._file}: options of {lane.name}")
            for name in names_of(lane.name, plan):
                if name in arguments:
                    raise ConfigurationError(
                        f"{self._file}: two workers would have the name {name!r}: that of a lane, "
                        "and a replica; rename the lane, or run fewer replicas"
                    )
                arguments[name] = self._arguments(lane, plan, name, reload)
                environments[name] = plan.environment
        return arguments, environments

    def again(self, reload: int) -> tuple[dict[str, list[str]], dict[str, Mapping[str, str]]]:
        """Return the commands and variables of new workers, for the supervisor.

        Raises:
            ConfigurationError: The file is wrong.
        """
        try:
            arguments, environments = self.read(reload)
        except click.UsageError as exc:
            raise ConfigurationError(exc.format_message()) from exc
        return {name: python_command(line) for name, line in arguments.items()}, environments

    def _arguments(self, lane: Lane, plan: WorkerPlan, name: str, reload: int) -> list[str]:
        own = ["-l", self._loglevel]
        if self._scale < 1 or plan.concurrency is not None:
            most = plan.concurrency or lane.concurrency
            own += ["-c", str(min(most, scaled(lane, self._scale)))]
        if plan.pool is not None:
            own += ["-P", plan.pool]
        node = f"{name}-r{reload}" if reload else name
        if node != lane.name:
            own += ["-n", f"{node}@%h"]
        # The command line has the last word.
        return worker_arguments(self._ctx, [lane], [*own, *plan.options, *self._options])


def _file_beside(ctx: click.Context) -> Path | None:
    """Return ``lanes.toml`` in the folder of the app's module, if there is one."""
    module = str(ctx.find_root().params.get("app") or "").partition(":")[0]
    for name in (module, module.rpartition(".")[0]):
        found = getattr(sys.modules.get(name), "__file__", None)
        if found is not None:
            path = Path(found).with_name(NAME)
            return path if path.is_file() else None
    return None
