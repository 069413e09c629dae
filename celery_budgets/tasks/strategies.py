"""Refuses task classes with a consumer strategy of their own.

Such a strategy, for example that of celery-batches, would bypass the slots and the limits of this
package. See also: :mod:`celery_budgets.worker.request_classes`, for custom request classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from celery import Task

__all__ = ["STRATEGY", "strategy_problems"]

#: The strategy of budgeted tasks.
STRATEGY = "celery_budgets.worker.request_classes:budgeted"
_HARMLESS = (STRATEGY, Task.Strategy)


def strategy_problems(cls: type[Task]) -> Iterator[str]:
    """Yield a problem for each strategy on a base of *cls* that would bypass this package.

    Also for one that another base class overrides: the ``run`` beside it expects its messages.
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
