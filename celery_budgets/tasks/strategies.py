"""Strategies of tasks: what a worker makes of a message is Celery's to decide, and not the task's.

A strategy of its own, such as that of celery-batches, takes messages past the slots and the limits
of this package: it is refused. See also: :mod:`celery_budgets.worker.request_classes`, for request
classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from celery import Task

__all__ = ["STRATEGY", "strategy_problems"]

#: That of a budgeted task.
STRATEGY = "celery_budgets.worker.request_classes:budgeted"
_HARMLESS = (STRATEGY, Task.Strategy)


def strategy_problems(cls: type[Task]) -> Iterator[str]:
    """Yield what keeps messages of the task class *cls* from this package.

    Also where another base class hides it: its ``run`` expects what its strategy makes.
    """
    for base in cls.__mro__:
        if base is Task or base.__module__.startswith("celery_budgets."):
            continue
        theirs: Mapping[str, Any] = vars(base)
        for name in ("Strategy", "start_strategy"):
            if name in theirs and theirs[name] not in _HARMLESS:
                yield (
                    f"task {cls.name!r}: {base.__qualname__}.{name} would take its calls past "
                    "their slots and limits; leave it out, or make it a plain task "
                    "(base=celery.Task, without BudgetedTask)"
                )
