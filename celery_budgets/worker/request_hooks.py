"""Wraps the two methods that Celery's generated request subclass overrides.

celery.worker.request.create_request_cls makes a subclass of the request class for each task, and
overrides ``execute_using_pool`` and ``on_success`` there without calling ``super()``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.exceptions import TaskRevokedError

from celery_budgets.model.headers import HEADER_TERMS
from celery_budgets.model.outcomes import Outcome
from celery_budgets.worker.calls.settling import UNSTORED, passes

__all__ = ["wrap_shadowed"]

_OURS = "_is_budgeted"


def wrap_shadowed(cls: type[Any]) -> None:
    """Wrap the two methods of *cls*, if it is Celery's subclass; once."""
    for name, wrap in (("execute_using_pool", executing), ("on_success", succeeding)):
        method = vars(cls).get(name)
        if method is not None and not hasattr(method, _OURS):
            wrapped = wrap(method)
            setattr(wrapped, _OURS, True)
            setattr(cls, name, wrapped)


def executing(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Return *execute*, called only for calls that are admitted and have not ended."""

    def execute_using_pool(self: Any, pool: Any, **kwargs: Any) -> Any:
        """Pass an admitted call to the pool; if it is not admitted, release its slot."""
        try:
            if not self.runtime.admits(self):
                # Celery then only releases its place in the pool.
                raise TaskRevokedError(self.id)
            self.request_dict[HEADER_TERMS] = self.runtime.terms(self)
            return execute(self, pool, **kwargs)
        except BaseException:
            self.runtime.slots.release(self)
            raise

    return execute_using_pool


def succeeding(on_success: Callable[..., Any]) -> Callable[..., Any]:
    """Return *on_success*, wrapped to count each success once."""

    def succeed(self: Any, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        """Count a success; pass a failure on to on_failure, as in Celery."""
        self.comes_back()
        if self.outcome is not None or self.given_up:
            return None  # the call has its outcome already
        failed, retval, _ = failed__retval__runtime
        if failed:
            self.on_failure(retval, return_ok=failed != UNSTORED)
            return None
        try:
            passes(self, on_success, self, failed__retval__runtime, **kwargs)
        finally:
            self.roster.ended(self, Outcome.SUCCEEDED)
        return None

    return succeed
