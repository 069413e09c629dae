"""Combines a custom request class of the program (``Task.Request``) with ``BudgetedRequest``.

Celery uses one request class per task. If a program has its own, the combined class inherits from
both, the program's first, so that its methods run as in plain Celery. If one of them does not call
``super()``, the method of this package is called after it, so that no end of a call is missed.

See also: :mod:`celery_budgets.worker.request`. Runs in the worker main process.
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

#: Attribute: which of this package's methods were called, and what they raised.
_HEARD = "_budgets_heard"
#: Methods by which Celery reports events of a call, and which must reach this package.
_TOLD = ("__init__", "on_accepted", "on_timeout", "on_failure", "_announce_revoked")


def budgeted(task: BudgetedTask, app: Any, consumer: Any) -> Any:
    """Return a handler for messages of *task*, with a request class that knows budgets.

    Wraps celery.worker.strategy.default, which takes the class from the task.
    """
    task_class: Any = type(task)
    task_class.Request = composed(task.name, task.Request)
    return default(task, app, consumer)


def request_problems(task: BudgetedTask) -> Iterator[str]:
    """Yield a problem if the request class of *task* cannot be used."""
    try:
        composed(task.name, task.Request)
    except ConfigurationError as exc:
        yield from exc.problems


def composed(task_name: str, theirs: Any) -> type[BudgetedRequest]:
    """Return the request class of a task.

    Args:
        task_name: Name of the task, for error messages.
        theirs: The program's class, or its import path.

    Raises:
        ConfigurationError: It is no request class, or cannot be combined with this package's.
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
        setattr(both, name, _reporting(both, name))

    def init_subclass(cls: Any, /, **kwargs: Any) -> None:
        """Wrap what Celery's subclass overrides, even if theirs does not call ``super()``."""
        super(both, cls).__init_subclass__(**kwargs)
        wrap_shadowed(cls)

    both.__init_subclass__ = classmethod(init_subclass)
    return both


def _reporting(both: Any, name: str) -> Callable[..., Any]:
    """Return their method, wrapped so that this package's method is always called.

    Its own errors are logged and not passed to Celery, which would lose the call's thread.
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
    """Return this package's method, wrapped to record its call and its exception."""
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
