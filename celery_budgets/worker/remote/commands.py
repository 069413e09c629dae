"""Remote control commands of this package: ``inspect budgets``, ``control cancel_scope`` and so on.

Importing this module registers them for every worker of the process. A worker whose app has no
budgets answers like plain Celery, or with an error to commands that are only about budgets.

Every ``celery`` command imports this module, for what ``celery inspect`` may ask. So each
function here imports what it needs of the worker, which has it anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery.utils.serialization import strtobool
from celery.worker.control import Panel, control_command, inspect_command, nok, ok

from celery_budgets.config.broker_limits import broker_ceiling
from celery_budgets.errors import ConfigurationError
from celery_budgets.model.budget import seconds_or_none
from celery_budgets.tasks.task import BudgetedTask
from celery_budgets.units import format_duration

if TYPE_CHECKING:
    from celery_budgets.worker.runtime import WorkerRuntime

__all__ = ["with_runtime"]

logger = logging.getLogger(__name__)

_celery_time_limit = Panel.data["time_limit"]


def with_runtime(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap *command*: pass it the runtime, or reply that this worker has none."""

    @wraps(command)
    def answered(state: Any, **arguments: Any) -> Any:
        from celery_budgets.worker.runtime import runtime_of

        try:
            runtime = runtime_of(state.app)
        except RuntimeError:
            return nok("this worker runs without budgets: its app has no Budgets(app)")
        return command(runtime, state, **arguments)

    return answered


@inspect_command(args=[("scope", str)], signature="[scope]")
@with_runtime
def budgets(runtime: WorkerRuntime, _state: Any, scope: str | None = None, **_: Any) -> Any:
    """Calls, limits and memory of this worker, per lane and task; or the calls of one scope."""
    if scope is not None:
        return {"scope": runtime.roster.tally.of_scope(scope).to_json()}
    return {
        **runtime.report.in_full(),
        "gate": runtime.gate.to_json() if runtime.settings.memory_guard else None,
        "time_limits": {name: list(pair) for name, pair in runtime.overrides.items()},
        "statistics": runtime.roster.tally.statistics().to_json(),
    }


@control_command(args=[("scope", str), ("running", strtobool)], signature="<scope> [running=False]")
def cancel_scope(state: Any, scope: str = "", running: bool = False, **_: Any) -> Any:
    """Tell worker(s) to revoke all calls of a request scope, and optionally end running ones."""
    if not scope:
        return nok("cancel_scope: name a scope")
    from celery_budgets.worker.calls.scopes import cancel

    ended = cancel(scope, state.consumer.pool, running=running)
    logger.info("budgets.scope_cancelled scope=%s terminated=%s", scope, ended)
    return ok(f"scope {scope} is cancelled, {ended} calls were terminated")


@control_command(
    name="time_limit",
    args=[("task_name", str), ("soft", float), ("hard", float)],
    signature="<task_name> <soft_secs> [hard_secs]",
)
def time_limit(
    state: Any, task_name: str = "", hard: float | None = None, soft: float | None = None, **_: Any
) -> Any:
    """Tell worker(s) to modify the time limit for task by type.

    Differs from celery.worker.control.time_limit for budgeted tasks: it applies to every call
    that starts from now on, even if its message has limits, or replies why it cannot.
    """
    task = state.app.tasks.get(task_name)
    if not isinstance(task, BudgetedTask):
        return _celery_time_limit(state, task_name=task_name, hard=hard, soft=soft)
    from celery_budgets.worker.runtime import runtime_of

    overrides = runtime_of(state.app).overrides
    for what, value in (("soft", soft), ("hard", hard)):
        if value is not None and seconds_or_none(value) is None:
            return nok(f"task {task_name!r}: {what} time limit {value!r}: give seconds above 0")
    soft, hard = seconds_or_none(soft), seconds_or_none(hard)
    if soft is None and hard is None:
        overrides.pop(task_name, None)
        return ok("time limits of the lane apply again")
    refusal = _refusal(state.app, task, soft, hard)
    if refusal:
        return nok(refusal)
    overrides[task_name] = (soft, hard)
    logger.info("budgets.time_limit_set task=%s soft=%s hard=%s", task_name, soft, hard)
    return ok("time limits set successfully")


def _refusal(app: Any, task: BudgetedTask, soft: float | None, hard: float | None) -> str | None:
    """Return why the limits are not possible, or ``None``."""
    try:
        budget = task.budget_in(task.home())
        changes = {"timeout": soft, "hard_timeout": hard}
        given = {name: value for name, value in changes.items() if value is not None}
        if soft is not None:
            budget.over(f"task {task.name!r}", given)
    except ConfigurationError as exc:
        return str(exc)
    ceiling = budget.max_timeout or broker_ceiling(app, budget.escalation_factor)
    if soft is not None and ceiling is not None and soft > ceiling:
        return (
            f"task {task.name!r}: soft time limit {format_duration(soft)} is above the highest "
            f"allowed ({format_duration(ceiling)}); raise the lane's max_timeout or the "
            "broker's visibility timeout"
        )
    return None
