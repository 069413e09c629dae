"""Applies the budget to ``__call__`` of tasks, including overrides of it.

A class may override ``__call__`` and run the body itself, as in Flask's documentation::

    class FlaskTask(BudgetedTask):
        def __call__(self, *args, **kwargs):
            with flask_app.app_context():
                return self.run(*args, **kwargs)

So the budget wraps the outermost ``__call__`` of a class: one defined on the class itself, on a
mix-in before or after :class:`celery_budgets.BudgetedTask` in its bases, or assigned later.

See also: :mod:`celery_budgets.tasks.mixins`, for other overrides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from celery import Task

from celery_budgets.model.headers import HEADER_TERMS

if TYPE_CHECKING:
    from celery_budgets.tasks.protocol import Budgeted

__all__ = ["call_body", "guard_call"]

#: Attribute of a request: the stage of its call, on the way to its body.
_STAGE = "budgets_stage"
_ON_ITS_WAY, _IN_BODY = 1, 2
_guards: WeakSet[Any] = WeakSet()


@cache
def _run_in_budget() -> Any:
    """Return ``run_in_budget``; imported late, because programs that only send do not need it."""
    from celery_budgets.tasks.run import run_in_budget

    return run_in_budget


def call_body(task: Budgeted, args: Any, kwargs: Any, behind: Callable[..., Any] | None) -> Any:
    """Implement ``BudgetedTask.__call__``: run the body, under a budget in a worker.

    Mirrors celery.app.trace.build_tracer, which calls ``run`` for a plain task, so that an eager
    call has its own request and no second one; and Task.__call__ for a direct call.

    Args:
        task: The task.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        behind: ``__call__`` of a mix-in that follows in the MRO and calls the body; ``None``: none.
    """
    request = task.request
    known = vars(request)
    stage, terms = known.get(_STAGE), known.get(HEADER_TERMS)
    if stage is _IN_BODY or (terms is None and request.called_directly):
        return (behind or Task.__call__.__get__(task))(*args, **kwargs)
    setattr(request, _STAGE, _IN_BODY)
    body = behind or task.run
    if stage is not None or terms is None:
        return body(*args, **kwargs)
    return _run_in_budget()(task, request, terms, partial(body, *args, **kwargs))


def guard_call(cls: type, own: Any) -> None:
    """Wrap ``__call__`` of *cls* in the budget, unless it is *own* or wrapped already.

    Args:
        cls: A subclass of BudgetedTask.
        own: The original ``__call__`` of BudgetedTask.
    """
    override = next(vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base))
    if override is not own and override not in _guards:
        cls.__call__ = _guarded(override)  # type: ignore[method-assign]


def _guarded(override: Any) -> Any:
    @wraps(override)
    def __call__(self: Budgeted, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        bound = override.__get__(self, type(self)) if hasattr(override, "__get__") else override
        request = self.request
        known = vars(request)
        terms = known.get(HEADER_TERMS)
        if terms is None or _STAGE in known:
            return bound(*args, **kwargs)
        setattr(request, _STAGE, _ON_ITS_WAY)
        return _run_in_budget()(self, request, terms, partial(bound, *args, **kwargs))

    _guards.add(__call__)
    return __call__
