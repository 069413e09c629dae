"""Combines ``BudgetedTask`` with other base classes of a task, in any order.

``class A(BudgetedTask, AbortableTask)`` and ``class A(AbortableTask, BudgetedTask)`` have the
features of both.
"""

from __future__ import annotations

from functools import cache, wraps
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from celery import Task
from celery.result import AsyncResult

from celery_budgets.sending.results import LaneResult

if TYPE_CHECKING:
    from celery_budgets.tasks.protocol import Budgeted

__all__ = ["behind", "configured_by", "guard_result", "knowing_lane"]

_guards: WeakSet[Any] = WeakSet()


def behind(cls: type, base: type, name: str) -> bool:
    """Return whether a class between *base* and Celery's own task defines *name* for *cls*."""
    classes = cls.__mro__[cls.__mro__.index(base) + 1 :]
    return next(one for one in classes if name in vars(one)) is not Task


def configured_by(cls: type, base: type) -> tuple[Any, ...]:
    """Return ``from_config`` of *base*, extended by what mix-ins after it add to Celery's."""
    own: tuple[Any, ...] = base.from_config  # type: ignore[attr-defined]
    classes = cls.__mro__[cls.__mro__.index(base) + 1 :]
    theirs = [pair for one in classes for pair in vars(one).get("from_config", ())]
    return own + tuple(pair for pair in theirs if pair not in (*own, *Task.from_config))


def guard_result(cls: type, own: Any) -> None:
    """Wrap ``AsyncResult`` of *cls*, so that its results know their lane."""
    name = "AsyncResult"
    override = next(vars(base)[name] for base in cls.__mro__ if name in vars(base))
    if override is own or override in _guards or not callable(override):
        return

    @wraps(override)
    def result_of(self: Budgeted, *args: Any, **kwargs: Any) -> Any:
        return knowing_lane(override(self, *args, **kwargs), self)

    _guards.add(result_of)
    setattr(cls, name, result_of)


def knowing_lane(result: Any, task: Budgeted) -> Any:
    """Return *result*, of any class, extended so that it knows the lane of *task*."""
    if isinstance(result, AsyncResult) and not isinstance(result, LaneResult):
        result.app = task._get_app()
        result._task_name = task.name
        result.named_queue = None
        kind: Any = type(result)
        result.__class__ = _with_lane(kind)
    return result


@cache
def _with_lane(kind: Any) -> Any:
    def reduce(self: Any) -> Any:
        # As an instance of *kind*: the process that unpickles it may not have this package.
        made, *rest = kind.__reduce__(self)
        return (kind if made is type(self) else made, *rest)

    return type(kind.__name__, (LaneResult, kind), {"__reduce__": reduce})
