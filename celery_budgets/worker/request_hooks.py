"""The two methods of a request that Celery's own subclass of it shadows, wrapped.

celery.worker.request.create_request_cls makes a subclass of the request class for each task, and
overrides ``execute_using_pool`` and ``on_success`` there without calling ``super()``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.exceptions import TaskRevokedError

from celery_budgets.model.headers import HEADER_TERMS
from celery_budgets.model.outcomes import Outcome
from celery_budgets.worker.calls.inherited_deadline import in_time
from celery_budgets.worker.calls.redelivery import is_settled
from celery_budgets.worker.calls.scopes import revoke_if_cancelled
from celery_budgets.worker.calls.settling import UNSTORED, passes

if TYPE_CHECKING:
    from celery_budgets.worker.request import BudgetedRequest

__all__ = ["wrap_shadowed"]

_OURS = "_is_budgeted"


def wrap_shadowed(cls: type[BudgetedRequest]) -> None:
    """Wrap the two methods of *cls* itself, where it is Celery's subclass; once."""
    for name, wrap in (("execute_using_pool", executing), ("on_success", succeeding)):
        method = vars(cls).get(name)
        if method is not None and not hasattr(method, _OURS):
            wrapped = wrap(method)
            setattr(wrapped, _OURS, True)
            setattr(cls, name, wrapped)


def executing(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Return *execute*, told only of calls that are admitted and not ended already."""

    def execute_using_pool(self: BudgetedRequest, pool: Any, **kwargs: Any) -> Any:
        """Hand an admitted call to the pool; without one, give its slot back."""
        try:
            _admit(self)
            self.request_dict[HEADER_TERMS] = self.roster.terms(self)
            return execute(self, pool, **kwargs)
        except BaseException:
            self.roster.leaves(self)
            raise

    return execute_using_pool


def _admit(request: BudgetedRequest) -> None:
    """Pass a call that is to run.

    Raises:
        TaskRevokedError: It is not; Celery gives its place in the pool back, and does no more.
    """
    admission = request.roster.admission
    if is_settled(request) or revoke_if_cancelled(request) or not in_time(request):
        raise TaskRevokedError(request.id)
    if admission is not None and not admission.admit(request):
        raise TaskRevokedError(request.id)


def succeeding(on_success: Callable[..., Any]) -> Callable[..., Any]:
    """Return *on_success*, with each success counted once."""

    def succeed(self: BudgetedRequest, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        """Count a success; a failure goes on to on_failure, as in Celery."""
        self.comes_back()
        if self.outcome is not None or self.given_up:
            return None  # its late end changes nothing
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
