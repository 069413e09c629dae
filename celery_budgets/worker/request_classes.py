"""A request class of the program's and this package's in one: neither is left out.

Celery asks one class per task (``Task.Request``). Where a program has its own, the class that is
used comes of both, the program's first: so its methods run as they do in plain Celery. One that
does not call ``super()`` cannot keep a call from its end: the half of this package is then called
after it.

See also: :mod:`celery_budgets.worker.request`, this package's own. Runs in the worker main process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import Any

from celery.utils.imports import symbol_by_name
from celery.worker.request import Request
from celery.worker.strategy import default

from celery_budgets.errors import ConfigurationError
from celery_budgets.tasks.task import BudgetedTask
from celery_budgets.worker.request import BudgetedRequest
from celery_budgets.worker.request_hooks import wrap_shadowed

__all__ = ["budgeted", "composed", "request_problems"]

logger = logging.getLogger(__name__)

#: Attribute: which of this package's methods were reached, and what they raised.
_HEARD = "_budgets_heard"
#: What Celery calls when something has happened to a call, and must reach this package.
_TOLD = ("__init__", "on_accepted", "on_timeout", "on_failure", "_announce_revoked")


def budgeted(task: BudgetedTask, app: Any, consumer: Any) -> Any:
    """Return what handles messages of *task*, with a request class that holds its budget.

    Stands in front of celery.worker.strategy.default, which takes the class from the task.
    """
    task_class: Any = type(task)
    task_class.Request = composed(task.name, task.Request)
    return default(task, app, consumer)


def request_problems(task: BudgetedTask) -> Iterator[str]:
    """Yield why the request class of *task* cannot be used."""
    try:
        composed(task.name, task.Request)
    except ConfigurationError as exc:
        yield from exc.problems


def composed(task_name: str, theirs: Any) -> type[BudgetedRequest]:
    """Return the request class of a task.

    Args:
        task_name: For the message of the error.
        theirs: A class, or its address.

    Raises:
        ConfigurationError: It is none, or cannot be made one with this package's.
    """
    try:
        kind = symbol_by_name(theirs)
    except Exception as exc:
        raise ConfigurationError(
            f"task {task_name!r}: Request {theirs!r} cannot be imported ({exc}); correct its "
            "address, or leave Request out"
        ) from exc
    if not isinstance(kind, type) or not issubclass(kind, Request):
        raise ConfigurationError(
            f"task {task_name!r}: Request {theirs!r} is no subclass of "
            "celery.worker.request.Request; make it one, or leave Request out"
        )
    if issubclass(kind, BudgetedRequest):
        return kind
    hashable: Any = kind
    try:
        both: type[BudgetedRequest] = _both(hashable)
    except TypeError as exc:
        raise ConfigurationError(
            f"task {task_name!r}: Request {theirs!r} cannot be one with BudgetedRequest ({exc}); "
            "derive it from celery_budgets.worker.request.BudgetedRequest, or leave Request out"
        ) from exc
    return both


@cache
def _both(theirs: Any) -> Any:
    if theirs is Request:
        return BudgetedRequest
    above = theirs.__mro__[: theirs.__mro__.index(Request)]
    names = [name for name in _TOLD if any(name in vars(cls) for cls in above)]
    inner = type("Heard", (BudgetedRequest,), {name: _heard(name) for name in names})
    both: Any = type(theirs.__name__, (theirs, inner), {"__module__": theirs.__module__})
    for name in names:
        setattr(both, name, _telling(both, name))

    def init_subclass(cls: Any, /, **kwargs: Any) -> None:
        """Wrap what Celery's subclass shadows, also where theirs does not call ``super()``."""
        super(both, cls).__init_subclass__(**kwargs)
        wrap_shadowed(cls)

    both.__init_subclass__ = classmethod(init_subclass)
    return both


def _telling(both: Any, name: str) -> Callable[..., Any]:
    """Return their method, after which this package has heard of it in any case.

    What it raises itself is logged and kept from Celery, which would lose the call's thread by it.
    """

    @wraps(getattr(both, name))
    def tell(self: Any, *args: Any, **kwargs: Any) -> Any:
        heard = self.__dict__.setdefault(_HEARD, {})
        heard.pop(name, None)
        try:
            return getattr(super(both, self), name)(*args, **kwargs)
        except Exception as exc:
            if name == "__init__" or heard.get(name) is exc:
                raise
            logger.exception("budgets.request_class_failed class=%s method=%s", both.__name__, name)
        finally:
            if name not in heard:
                getattr(BudgetedRequest, name)(self, *args, **kwargs)

    return tell


def _heard(name: str) -> Callable[..., Any]:
    """Return this package's method, which notes that it was called, and what it raises."""
    ours = getattr(BudgetedRequest, name)

    @wraps(ours)
    def hear(self: Any, *args: Any, **kwargs: Any) -> Any:
        heard = self.__dict__.setdefault(_HEARD, {})
        heard[name] = None
        try:
            return ours(self, *args, **kwargs)
        except Exception as exc:
            heard[name] = exc
            raise

    return hear
