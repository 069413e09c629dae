"""Acknowledges or rejects the message of a call that was killed or not admitted.

Celery's settings apply as for a call that fails or times out in plain Celery:
``task_acks_on_failure_or_timeout``, ``task_acks_on_failure`` and ``task_acks_on_timeout`` (5.7),
``task_reject_on_worker_lost``, ``task_retry_on_worker_lost`` (5.7).

Runs in the worker main process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.worker import state
from celery.worker.request import Request

from celery_budgets.model.outcomes import Outcome

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["SettlingRequest", "comes_again", "give_back"]


class SettlingRequest(Request):
    """A delivery that knows whether its message is redelivered."""

    #: Whether Celery has requeued it, or published a retry.
    sent_again = False
    #: What it needs of limits over the fleet, if that depends on the call itself.
    demands: Any = None
    #: For how long only those kept it from its start, seconds.
    limit_wait = 0.0
    _success_was_found = False

    def reject(self, requeue: bool = False) -> None:
        """Reject the message, and record whether it was requeued."""
        self.sent_again = self.sent_again or (requeue and not self.acknowledged)
        super().reject(requeue)

    def step_aside(self) -> None:
        """Acknowledge the message of a call that waits aside, from where it comes back."""
        state.task_ready(self)
        self.acknowledge()

    def _retry_worker_lost(self, *args: Any) -> Any:
        """Publish a retry as Celery does since 5.7, and record whether it did."""
        retried = super()._retry_worker_lost(*args)
        self.sent_again = self.sent_again or bool(retried)
        return retried

    def _success_was_stored(self) -> Any:
        """Remember whether Celery finds a stored success of a lost process.

        Celery checks that since 5.7; before, such a call counts as lost.
        """
        find = getattr(super(), "_success_was_stored", None)
        found = find() if find is not None else False
        self._success_was_found = bool(found)
        return found


def comes_again(task: Any, outcome: Outcome) -> bool:
    """Return whether Celery's settings requeue the message of a killed call.

    Mirrors the end of celery.worker.request.Request.on_timeout (5.7; earlier versions do it in
    on_failure). Differs: if ``max_kills`` is set, it decides how often such a call runs again.
    """
    if task.max_kills or not task.acks_late or outcome is not Outcome.HARD_TIME_LIMIT:
        return False
    return not _is_acknowledged(task, "acks_on_timeout")


def give_back(request: Delivery, outcome: Outcome) -> None:
    """Acknowledge the message of a call that has finally ended, or reject it as Celery does."""
    which = "acks_on_timeout" if outcome is Outcome.HARD_TIME_LIMIT else "acks_on_failure"
    if request.task.acks_late and not _is_acknowledged(request.task, which):
        request.reject(requeue=False)  # to the dead-letter exchange, if the queue has one
    else:
        request.acknowledge()


def _is_acknowledged(task: Any, which: str) -> bool:
    """Return the attribute *which* of Celery 5.7; before, one attribute is for both cases."""
    own = getattr(task, which, None)
    return bool(own if own is not None else task.acks_on_failure_or_timeout)
