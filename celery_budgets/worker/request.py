"""``BudgetedRequest``: one delivery of a budgeted task, in the worker main process.

It applies the limits of the lane and the task to the delivery, and Celery calls its methods when
the call ends. See also: :mod:`celery_budgets.worker.calls.roster`, to which it reports.
"""

from __future__ import annotations

import logging
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.exceptions import (
    Reject,
    TaskRevokedError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.worker import state

from celery_budgets.errors import MemoryLimitExceeded, RejectedByBudget, Throttled, words_of
from celery_budgets.execution.flight.record import Flight, Reason
from celery_budgets.execution.outcome import outcome_of
from celery_budgets.model.budget import TimeLimits
from celery_budgets.model.headers import HEADER_DUE_AT
from celery_budgets.model.outcomes import Outcome
from celery_budgets.model.reasons import REASON_DEADLINE
from celery_budgets.worker.assignment import Assignment
from celery_budgets.worker.calls.acknowledgement import SettlingRequest, comes_again, give_back
from celery_budgets.worker.calls.inherited_deadline import came_too_late
from celery_budgets.worker.calls.malformed_headers import drop_malformed
from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.calls.settling import fail, passes, storable
from celery_budgets.worker.calls.terminated import TerminableRequest
from celery_budgets.worker.calls.twins import expires_alone, shares_result_of_twin
from celery_budgets.worker.pool.stopped_calls import hands_back_stopped
from celery_budgets.worker.request_hooks import wrap_shadowed
from celery_budgets.worker.runtime import WorkerRuntime
from celery_budgets.worker.stacks.black_box import shown

__all__ = ["BudgetedRequest"]

logger = logging.getLogger(__name__)

#: Errors of a pool process that has exited, or is about to (billiard.pool.Worker.workloop).
_LOST = (WorkerLostError, SystemExit, KeyboardInterrupt)
#: Most queues whose assignment is cached for a task.
MOST_QUEUES = 1_000


class BudgetedRequest(TerminableRequest, SettlingRequest):
    """A delivery with a lane and limits, which ends with exactly one outcome."""

    runtime: WorkerRuntime
    roster: Roster
    outcome: Outcome | None = None
    #: A redelivery of the same message, settled along with this one.
    again: BudgetedRequest | None = None
    #: Whether its message was redelivered elsewhere, so that this delivery must not settle it.
    overtaken = False
    #: Whether its thread runs on past the hard limit, and AbandonedThreads ends the call.
    given_up = False
    #: The handle that a pool in this process returned for it.
    job: Any = None
    #: Whether the roster counts this call as running.
    counted = False
    #: Assignments by queue, for the task and app of a subclass; ``None``: not cached.
    _assignments: dict[str, Assignment] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the two methods that celery.worker.request.create_request_cls overrides.

        That function makes a subclass for each task and does not call ``super()`` in them.
        """
        super().__init_subclass__(**kwargs)
        # Only in Celery's subclass, which is of one task; a user's may be shared by many.
        cls._assignments = {} if "execute_using_pool" in cls.__dict__ else None
        wrap_shadowed(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assignment = self._assignment()
        self.runtime = assignment.runtime
        self.roster = self.runtime.roster
        self.lane, self.ceiling = assignment.lane, assignment.ceiling
        self.limits = self._time_limits(assignment)
        # Celery's own attribute, (hard, soft): read when the call is handed to the pool.
        self.time_limits = (self.limits.hard, self.limits.soft)
        drop_malformed(self)
        #: Distinguishes a redelivered message from a new one with the same task id.
        self.message_key: tuple[str, float | None] = (
            self.id, self._request_dict.get(HEADER_DUE_AT),
        )  # fmt: skip

    def _assignment(self) -> Assignment:
        """Return the assignment of the task's calls from this queue.

        Cached as long as Celery keeps the strategy of a task: until the consumer restarts.
        """
        queue = self._delivery_info["routing_key"]
        assignment = self._assignments.get(queue) if self._assignments is not None else None
        if assignment is None:
            assignment = Assignment.of(self._app, self._task, self._type, queue)
            # A producer may use a different routing key for each message.
            if self._assignments is not None and len(self._assignments) < MOST_QUEUES:
                self._assignments[queue] = assignment
        return assignment

    @property
    def hard_rss(self) -> int:
        """Bytes of RSS at which the call is killed."""
        return self._assignment().budget.hard_rss

    def _time_limits(self, assignment: Assignment) -> TimeLimits:
        """Return the limits in force: those set by an operator, else the call's."""
        override = self._override() if self.runtime.overrides else None
        if override is not None:
            soft, hard = override
            return assignment.budget.time_limits(soft=soft, hard=hard)
        return assignment.limits_of(self._task, self._request_dict.get("timelimit"))

    def _override(self) -> tuple[float | None, float | None] | None:
        """Return an operator's (soft, hard) limit for the task, or for the one that it maps."""
        mapped = getattr(self._task, "mapped", None)
        name = self._type if mapped is None else mapped.name
        return self.runtime.overrides.get(name)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Count the call as running, before an early acknowledgement.

        Raises:
            TaskRevokedError: The gate has closed while a pool of threads kept the call waiting.
                Before its body: celery.concurrency.base.apply_target calls this first.
        """
        if not self.runtime.admits_start(self):
            self.runtime.slots.release(self)
            raise TaskRevokedError(self.id)
        passes(self, super().on_accepted, pid, time_accepted)
        self.roster.accepted(self)
        self.runtime.started(self)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """End a call that was killed at its hard limit.

        Differs from Celery 5.7, which runs the failure hooks here and in on_failure both.
        """
        if soft:
            super().on_timeout(soft, timeout)
        else:
            self.end_killed(TimeLimitExceeded(timeout), Outcome.HARD_TIME_LIMIT)

    def on_failure(
        self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        """Determine the outcome of the call, then let Celery settle it.

        Args:
            exc_info: The exception that ended the call.
            send_failed_event: As in Celery.
            return_ok: Whether the exception comes from the process of the call itself.
        """
        self.comes_back()
        if self.outcome is not None or self.given_up:
            return  # the call has its outcome already
        exc = exc_info.exception
        exc = exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
        if isinstance(exc, TimeLimitExceeded) and not return_ok:
            return  # billiard.pool.TimeoutHandler.on_hard_timeout calls on_timeout next
        flight = self.runtime.flight_of(self)
        if isinstance(exc, _LOST) and (
            self._ended_itself(flight) or hands_back_stopped(self, exc, flight)
        ):
            return
        if isinstance(exc, WorkerLostError) and self._may_run_again():
            self.end_killed(exc, Outcome.WORKER_LOST, flight)
            return
        if isinstance(exc, MemoryError):
            # From a handler (a body's is a MemoryLimitExceeded). Celery would end the worker.
            rss = flight.rss_peak_bytes if flight is not None else 0
            self.end_killed(MemoryLimitExceeded(rss), Outcome.MEMORY_LIMIT, flight)
            return
        # The slot first: settling may wait for a result backend.
        self.runtime.slots.release(self)
        exc_info = shown(self, storable(exc_info, exc), exc)
        if not passes(self, super().on_failure, exc_info, send_failed_event, return_ok):
            give_back(self, Outcome.FAILED)
        self.roster.ended(self, self._outcome_of(exc, flight), flight, words_of(exc))

    def _may_run_again(self) -> bool:
        """Return whether we settle a lost process, and not Celery, which found a stored success."""
        may = self._task.max_kills and not state.should_terminate
        return bool(may) and not self._success_was_stored()

    def _outcome_of(self, exc: BaseException, flight: Flight | None) -> Outcome:
        if self._already_cancelled:
            # Ended by Celery when a connection was lost: the message is redelivered.
            return Outcome.RETRIED
        if isinstance(exc, Terminated):
            return Outcome.REVOKED
        if came_too_late(self, exc, flight):
            self.roster.rejected(self, REASON_DEADLINE)
            return Outcome.REJECTED
        self.roster.throttled.update([exc.limit] if isinstance(exc, Throttled) else ())
        if self.sent_again and not isinstance(exc, Reject):
            return Outcome.RETRIED
        if isinstance(exc, _LOST):
            return Outcome.SUCCEEDED if self._success_was_found else Outcome.WORKER_LOST
        return outcome_of(exc)

    def _ended_itself(self, flight: Flight | None) -> bool:
        """End a call whose process recorded in its flight record why it ended itself."""
        if flight is None or flight.reason is Reason.NONE:
            return False
        if flight.reason is Reason.HARD_TIME_LIMIT:
            self.end_killed(TimeLimitExceeded(self.limits.hard), Outcome.HARD_TIME_LIMIT, flight)
        else:
            error = MemoryLimitExceeded(flight.rss_peak_bytes, self.hard_rss)
            self.end_killed(error, Outcome.MEMORY_LIMIT, flight)
        return True

    @property
    def store_errors(self) -> bool:
        """Whether an error is stored as the result: not if that is shared with a twin."""
        return super().store_errors and not shares_result_of_twin(self)

    def maybe_expire(self) -> bool:
        """Return whether the call has expired; its twins, with the same id, may not have."""
        return expires_alone(self, super().maybe_expire)

    def _announce_revoked(self, reason: str, *args: Any, **kwargs: Any) -> None:
        self.roster.ended(self, Outcome.REVOKED, reason=reason)
        if not passes(self, super()._announce_revoked, reason, *args, **kwargs):
            self.acknowledge()
            self._already_revoked = True

    def _announce_cancelled(self, *args: Any, **kwargs: Any) -> None:
        passes(self, super()._announce_cancelled, *args, **kwargs)
        self._already_cancelled = True

    def end_killed(self, exc: Exception, outcome: Outcome, flight: Flight | None = None) -> None:
        """End a call whose end no process will report; only the first end counts.

        Mirrors the hard half of celery.worker.request.Request.on_timeout (5.7). Differs: also used
        for memory, with the task's request available to handlers, and on earlier Celery; and if the
        message is redelivered, it stores no failure, which Celery 5.7 does.

        Args:
            exc: The result that the caller gets.
            outcome: How the call ended.
            flight: Its flight record, if it has been read already.
        """
        self.comes_back()
        if self.outcome is not None:
            return
        state.task_ready(self)
        words, self.stacks = words_of(exc), self.runtime.black_box.of(self, flight)
        logger.error("budgets.call_killed task=%s task_id=%s: %s", self.name, self.id, words)
        again = self.runtime.reruns.run_again(self, exc, outcome)
        if comes_again(self._task, outcome):
            self.roster.ended(self, Outcome.RETRIED, flight, words)
            self.reject(requeue=True)
            return
        self.roster.ended(self, outcome, flight, words, again=again)
        if again:
            self.acknowledge()
        else:
            fail(self, exc)
            give_back(self, outcome)

    def end_rejected(self, exc: RejectedByBudget) -> None:
        """Fail a call that is not admitted: its caller gets *exc*."""
        if self.outcome is not None:
            return
        state.task_ready(self)
        self.roster.ended(self, Outcome.REJECTED, reason=str(exc))
        fail(self, exc)
        give_back(self, Outcome.REJECTED)

    def acknowledge(self) -> None:
        """Acknowledge the message, and its redelivery."""
        super().acknowledge()
        if self.again is not None:
            self.again.acknowledge()

    def reject(self, requeue: bool = False) -> None:
        """Reject the message, and its redelivery."""
        super().reject(requeue)
        if self.again is not None:
            self.again.reject(requeue)

    def hand_back(self) -> None:
        """Requeue the message at the broker, for another worker or for later.

        Mirrors Request.reject(requeue=True), without its event: the call itself is not rejected.
        Only for a call that has not started, and so is not acknowledged, early or late.
        """
        state.task_ready(self)
        self._on_reject(logger, self._connection_errors, True)
        self.acknowledged = True
