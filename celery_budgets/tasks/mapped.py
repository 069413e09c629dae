"""``map``, ``starmap`` and ``chunks`` of a budgeted task: many runs of that task in one call.

Celery sends them as calls of its own tasks (celery.app.builtins). This module replaces these
tasks, so that each message uses the lane and the budget of the task that it names.

See also: :mod:`celery_budgets.worker.mapped_strategy`, which reads the name in the worker.
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

#: Attributes that Celery and this package read from a task while they settle a message.
_OF_THE_MAPPED = (
    "acks_late", "acks_on_failure_or_timeout", "acks_on_failure", "acks_on_timeout",
    "reject_on_worker_lost", "retry_on_worker_lost", "max_retries", "soft_time_limit", "time_limit",
    "idempotent", "max_kills", "soft", "memory",
)  # fmt: skip


class MappingTask(BudgetedTask):
    """A built-in task of Celery that runs another task many times, in one call."""

    abstract = True
    Strategy = "celery_budgets.worker.mapped_strategy:by_mapped_task"
    #: The task that is run; ``None``: each message names one.
    mapped: BudgetedTask | None = None

    def budget_in(self, lane: Lane) -> Budget:
        """Return the budget of the mapped task's calls in *lane*."""
        mapped = self.mapped or self.mapped_by(self.request.args, self.request.kwargs)
        return mapped.budget_in(lane) if mapped is not None else super().budget_in(lane)

    def mapped_by(self, args: Any, kwargs: Any) -> BudgetedTask | None:
        """Return the budgeted task that a message names; ``None`` if that is not budgeted."""
        task = self.app.tasks.get(mapped_name(args, kwargs))
        return task if isinstance(task, BudgetedTask) else None

    def charged_to(self, mapped: BudgetedTask) -> MappingTask:
        """Return a variant of this task with the lane and the settings of *mapped*."""
        charged = self._twin()
        charged.__dict__.update({name: getattr(mapped, name, None) for name in _OF_THE_MAPPED})
        charged.__dict__.update(mapped=mapped, lane=mapped.home().name)
        return charged

    def plain(self) -> MappingTask:
        """Return a variant of this task for messages that name no budgeted task: as in Celery."""
        charged = self._twin()
        charged.__dict__.update(
            Request="celery.worker.request:Request",
            acks_late=self.app.conf.task_acks_late,
        )
        return charged

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Send a call, to the lane of the mapped task.

        In a canvas that was serialized, celery.canvas.xmap passes a whole signature to routers
        instead of a name, which Celery's routers cannot read.
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
    """Run ``map``, ``starmap`` and ``chunks`` of budgeted tasks in the lanes of these tasks.

    Mirrors celery.app.builtins, whose functions it calls; other tasks are mapped as in Celery.

    Args:
        app: The app; the change is postponed until Celery has finalized it.
    """
    if not app.finalized:
        app.on_after_finalize.connect(_on_finalized, dispatch_uid=__name__)
        return
    for name in MAPPING:
        theirs = app._tasks.get(name)
        if type(theirs).__module__ != builtins.__name__ or isinstance(theirs, MappingTask):
            continue  # the program has replaced it
        del app._tasks[name]
        bases = tuple(dict.fromkeys((MappingTask, app.Task)))
        base = type("MappingTask", bases, {"abstract": True})
        task = app._task_from_fun(theirs.run, name=name, base=base)
        if theirs.__trace__ is not None:
            # A spawned process has built its tracers already, and does not rebuild them.
            task.__trace__ = build_tracer(name, task, app.loader, app=app)


def _on_finalized(sender: Any, **_: Any) -> None:
    charge_mapped(sender)
