"""The two methods of a request that Celery's own subclass of it shadows, wrapped.

celery.worker.request.create_request_cls makes a subclass of the request class for each task, and
overrides ``execute_using_pool`` and ``on_success`` there without calling ``super()``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.exceptions import TaskRevokedError
from celery.worker import state

from celery_budgets.outcomes import Outcome
from celery_budgets.telemetry.names import HEADER_TERMS

if TYPE_CHECKING:
    from celery_budgets.worker.request import BudgetedRequest

__all__ = ["executing", "succeeding"]

logger = logging.getLogger(__name__)


def executing(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Return *execute*, told only of calls that are admitted and not ended already."""

    def execute_using_pool(self: BudgetedRequest, pool: Any, **kwargs: Any) -> Any:
        """Settle a second delivery of an ended call; hand any other to the pool."""
        ended = self.roster.already_ended(self)
        if ended is None and self.joins_first():
            raise TaskRevokedError(self.id)
        if ended is None:
            if self.roster.admission is not None and not self.roster.admission.admit(self):
                raise TaskRevokedError(self.id)  # gives the slot back, and does no more
            # Without its class, which takes longer to pickle than all the rest.
            self.request_dict[HEADER_TERMS] = tuple(self.roster.terms(self))
            return execute(self, pool, **kwargs)
        logger.warning("budgets.redelivery_settled task_id=%s outcome=%s", self.id, ended.value)
        state.task_ready(self)
        self.outcome = ended  # of the first delivery: not counted again
        self.acknowledge()
        raise TaskRevokedError(self.id)

    return execute_using_pool


def succeeding(on_success: Callable[..., Any]) -> Callable[..., Any]:
    """Return *on_success*, with each success counted once."""

    def succeed(self: BudgetedRequest, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        """Count a success; a failure goes on to on_failure, as in Celery."""
        if self.outcome is not None or self.given_up:
            return None  # its late end changes nothing
        failed = failed__retval__runtime[0]
        try:
            return on_success(self, failed__retval__runtime, **kwargs)
        finally:
            if not failed:
                self.roster.ended(self, Outcome.SUCCEEDED)

    return succeed
