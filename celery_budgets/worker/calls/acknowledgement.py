"""How the message of a call that was killed, or not admitted, is given back to the broker.

Celery's settings count as they do for a call that fails or times out in plain Celery:
``task_acks_on_failure_or_timeout``, ``task_acks_on_failure`` and ``task_acks_on_timeout`` (5.7),
``task_reject_on_worker_lost``, ``task_retry_on_worker_lost`` (5.7).

Runs in the worker main process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.worker.request import Request

from celery_budgets.model.outcomes import Outcome

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["SettlingRequest", "comes_again", "give_back"]


class SettlingRequest(Request):
    """A delivery that knows whether its message comes again."""

    #: Has Celery rejected it so that the broker hands it out again, or published a retry?
    sent_again = False
    _success_was_found = False

    def reject(self, requeue: bool = False) -> None:
        """Reject the message, and note whether it comes again."""
        self.sent_again = self.sent_again or (requeue and not self.acknowledged)
        super().reject(requeue)

    def _retry_worker_lost(self, *args: Any) -> Any:
        """Publish a retry as Celery does since 5.7, and note whether it did."""
        retried = super()._retry_worker_lost(*args)
        self.sent_again = self.sent_again or bool(retried)
        return retried

    def _success_was_stored(self) -> Any:
        """Remember what Celery finds when a process is lost after it stored its result.

        Celery looks for it since 5.7; before, such a call is a lost one.
        """
        find = getattr(super(), "_success_was_stored", None)
        found = find() if find is not None else False
        self._success_was_found = bool(found)
        return found


def comes_again(task: Any, outcome: Outcome) -> bool:
    """Return whether Celery has the broker hand out again the message of a call that was killed.

    Mirrors the end of celery.worker.request.Request.on_timeout (5.7; earlier versions do it in
    on_failure). Where ``max_kills`` is set it says how often such a call runs again, instead.
    """
    if task.max_kills or not task.acks_late or outcome is not Outcome.HARD_TIME_LIMIT:
        return False
    return not _is_acknowledged(task, "acks_on_timeout")


def give_back(request: Delivery, outcome: Outcome) -> None:
    """Acknowledge the message of a call that has ended for good, or reject it as Celery does."""
    which = "acks_on_timeout" if outcome is Outcome.HARD_TIME_LIMIT else "acks_on_failure"
    if request.task.acks_late and not _is_acknowledged(request.task, which):
        request.reject(requeue=False)  # a queue with a dead-letter exchange passes it on
    else:
        request.acknowledge()


def _is_acknowledged(task: Any, which: str) -> bool:
    """Return an attribute of Celery 5.7; before, there is one for both."""
    own = getattr(task, which, None)
    return bool(own if own is not None else task.acks_on_failure_or_timeout)
