"""``map``, ``starmap`` and ``chunks`` of a budgeted task: calls of that task, many in one.

Celery sends them as calls of tasks of its own (celery.app.builtins). Those are made here again, so
that each message of theirs is charged to the lane and the budget of the task that it names.

See also: :mod:`celery_budgets.worker.mapped_strategy`, which tells messages apart in the worker.
"""

from __future__ import annotations

from typing import Any

from celery.app import builtins
from celery.app.trace import build_tracer

from celery_budgets.config.routing import MAPPING, mapped_name
from celery_budgets.model.budget import Budget
from celery_budgets.model.lanes import Lane
from celery_budgets.tasks.task import BudgetedTask

__all__ = ["MappingTask", "charge_mapped"]

#: What Celery reads of a task while it settles a message, and what this package does.
_OF_THE_MAPPED = (
    "acks_late", "acks_on_failure_or_timeout", "acks_on_failure", "acks_on_timeout",
    "reject_on_worker_lost", "retry_on_worker_lost", "max_retries", "soft_time_limit", "time_limit",
    "idempotent", "max_kills", "soft", "memory",
)  # fmt: skip


class MappingTask(BudgetedTask):
    """A task of Celery's own that runs another one many times, in one call."""

    abstract = True
    Strategy = "celery_budgets.worker.mapped_strategy:by_mapped_task"
    #: The task whose calls these are; ``None``: each message names one.
    mapped: BudgetedTask | None = None

    def budget_in(self, lane: Lane) -> Budget:
        """Return the budget of the mapped task's calls in *lane*."""
        mapped = self.mapped or self.mapped_by(self.request.args, self.request.kwargs)
        return mapped.budget_in(lane) if mapped is not None else super().budget_in(lane)

    def mapped_by(self, args: Any, kwargs: Any) -> BudgetedTask | None:
        """Return the budgeted task that a message names; ``None`` where it is another."""
        task = self.app.tasks.get(mapped_name(args, kwargs))
        return task if isinstance(task, BudgetedTask) else None

    def charged_to(self, mapped: BudgetedTask) -> MappingTask:
        """Return this task for messages that name *mapped*: with its lane and its settings."""
        charged = self._twin()
        charged.__dict__.update({name: getattr(mapped, name, None) for name in _OF_THE_MAPPED})
        charged.__dict__.update(mapped=mapped, lane=mapped.home().name)
        return charged

    def plain(self) -> MappingTask:
        """Return this task for messages that name no budgeted one: as it is in Celery."""
        charged = self._twin()
        charged.__dict__.update(
            Request="celery.worker.request:Request",
            acks_late=self.app.conf.task_acks_late,
        )
        return charged

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Send a call, to the lane of the mapped task.

        In a canvas that has travelled celery.canvas.xmap gives routers a whole signature instead
        of a name, and none of Celery's can read that.
        """
        if not isinstance(options.get("route_name"), str):
            options["route_name"] = mapped_name(args, kwargs)
        return super().apply_async(args, kwargs, *more, **options)

    def _twin(self) -> MappingTask:
        # Not by copy.copy, which is given the registered task again (Task.__reduce__).
        twin: MappingTask = object.__new__(type(self))
        twin.__dict__.update(vars(self), Strategy="celery.worker.strategy:default")
        return twin


def charge_mapped(app: Any) -> None:
    """Have ``map``, ``starmap`` and ``chunks`` of budgeted tasks charged to their lanes.

    Mirrors celery.app.builtins, whose functions are run; other tasks are mapped as in Celery.

    Args:
        app: The app; before it is finalized Celery has not made its own tasks, and this waits.
    """
    if not app.finalized:
        app.on_after_finalize.connect(_on_finalized, dispatch_uid=__name__)
        return
    for name in MAPPING:
        theirs = app._tasks.get(name)
        if type(theirs).__module__ != builtins.__name__ or isinstance(theirs, MappingTask):
            continue  # the program's own
        del app._tasks[name]
        bases = tuple(dict.fromkeys((MappingTask, app.Task)))
        base = type("MappingTask", bases, {"abstract": True})
        task = app._task_from_fun(theirs.run, name=name, base=base)
        if theirs.__trace__ is not None:
            # A spawned process has built them already, and builds no other.
            task.__trace__ = build_tracer(name, task, app.loader, app=app)


def _on_finalized(sender: Any, **_: Any) -> None:
    charge_mapped(sender)
