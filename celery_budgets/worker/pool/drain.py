"""Stops a worker with a known grace: hands back at once what will not end in time.

Decided when the worker has left its event loop, in its main thread, in which everything here runs:
the broker's connection is that thread's. What gets the grace and has not ended in the last second
is handed back then; what must not run twice is told by name, and goes on.

Physical limit: only pool processes can be stopped from outside, so on the other pools the worker
tells what will be lost, and waits.

Lives in the worker main process. See also: :mod:`celery_budgets.model.workers.drain`, which
decides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery.exceptions import WorkerLostError
from celery.worker import state

from celery_budgets.execution.flight.record import Flight
from celery_budgets.model.outcomes import Outcome
from celery_budgets.model.workers.drain import Decision, RunningCall, Verdict, decide
from celery_budgets.telemetry.histogram import Histogram
from celery_budgets.telemetry.statistics import Statistics
from celery_budgets.units import format_duration
from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.pool.children import Children
from celery_budgets.worker.pool.jobs import job_of

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["LAST", "Drain", "history_of", "running_call"]

logger = logging.getLogger(__name__)

#: How long before the end of the grace the rest is handed back, seconds; the pool looks for dead
#: processes every half second (celery.concurrency.asynpool.ResultHandler.on_stop_not_started).
LAST = 1.5


def running_call(request: Delivery, flight: Flight | None) -> RunningCall:
    """Return how far the call of *request* is."""
    now, soft, hard = monotonic(), request.limits.soft, request.limits.hard
    age = max(0.0, time() - (request.time_start or time()))
    soft_left, hard_left = soft - age, hard - age
    if flight is not None:
        soft_left, hard_left = flight.soft_deadline - now, flight.hard_deadline - now
    may_run_again = bool(request.task.acks_late) and not request.acknowledged
    ended = flight is not None and flight.ended
    return RunningCall(age, soft_left, hard_left, may_run_again, ended)


def history_of(statistics: Statistics, request: Delivery) -> Histogram:
    """Return how long earlier calls of the task of *request* ran in its lane."""
    found = statistics.calls.get((request.lane.name, request.type))
    return found.duration if found is not None else Histogram()


class Drain:
    """The stop of one worker.

    Args:
        roster: The calls that run.
        flight_of: Returns the flight record of a call.
        children: Ends processes of the pool with their children; ``None`` if there are none.
        cutoff: Below this chance to end in time a call is handed back.
    """

    def __init__(
        self,
        roster: Roster,
        flight_of: Callable[[Delivery], Flight | None],
        children: Children | None,
        cutoff: float,
    ) -> None:
        self._roster = roster
        self._flight_of = flight_of
        self._children = children
        self._pool: Any = children.asynpool if children is not None else None
        self._cutoff = cutoff
        self._ends_at = 0.0
        self._join: Callable[..., Any] | None = None

    def begin(self, ends_at: float) -> None:
        """Decide on each running call, and hand back what has no chance.

        Args:
            ends_at: Monotonic instant at which the worker will be killed.
        """
        self._ends_at = ends_at
        statistics = self._roster.tally.statistics()
        left, hopeless = ends_at - monotonic(), []
        for request in list(self._roster.in_hand.values()):
            call = running_call(request, self._flight_of(request))
            decision = decide(call, history_of(statistics, request), left, self._cutoff)
            if self._pool is None and decision.verdict is Verdict.HAND_BACK:
                decision = Decision(Verdict.LEAVE, decision.chance)
            logger.warning(
                "budgets.drain task=%s task_id=%s lane=%s age=%s left=%s chance=%.0f%%: %s",
                request.name, request.id, request.lane.name,
                format_duration(round(call.age, 1)), format_duration(round(left, 1)),
                100 * decision.chance, decision.verdict.value,
            )  # fmt: skip
            if decision.verdict is Verdict.HAND_BACK:
                hopeless.append(request)
        if hopeless:
            self._hand_back(hopeless)
        if self._pool is not None and self._roster.in_hand:
            handler = self._pool._result_handler
            self._join, handler.join_exited_workers = handler.join_exited_workers, self._look

    def _look(self, *args: Any, **kwargs: Any) -> Any:
        """Hand back the rest in the last second; then look for dead processes, as before."""
        assert self._join is not None
        if monotonic() >= self._ends_at - LAST:
            self._pool._result_handler.join_exited_workers = self._join
            self._ends_at = float("inf")
            self._end()
        return self._join(*args, **kwargs)

    def _end(self) -> None:
        rest = []
        for request in list(self._roster.in_hand.values()):
            call = running_call(request, self._flight_of(request))
            if call.ended:
                continue
            if call.may_run_again:
                rest.append(request)
            else:
                logger.error(
                    "budgets.drain_leaves task=%s task_id=%s lane=%s age=%s: it must not run twice "
                    "(acknowledged early); the grace is over, and whoever ends the worker ends it",
                    request.name, request.id, request.lane.name,
                    format_duration(round(call.age, 1)),
                )  # fmt: skip
        if rest:
            self._hand_back(rest)

    def _hand_back(self, requests: Collection[Delivery]) -> None:
        """End the processes of calls, then return their messages to the queue.

        In this order: another worker may start them at once.
        """
        assert self._children is not None
        try:
            found = [self._pool._process_by_pid(each.worker_pid)[0] for each in requests]
            self._children.kill_all([process for process in found if process is not None])
        except Exception:
            logger.exception("budgets.drain_failed: processes of %s calls", len(requests))
            return
        for request in requests:
            try:
                self._return(request)
            except Exception:
                # The broker gives it to another worker when this one is gone.
                logger.exception("budgets.drain_failed task_id=%s", request.id)

    def _return(self, request: Delivery) -> None:
        """Return a message; the pool forgets the call, which it would otherwise wait for.

        billiard.pool.TimeoutHandler.on_hard_timeout does the same.
        """
        flight = self._flight_of(request)
        if flight is not None and flight.ended:
            return  # in the last moment: the pool reads how
        state.task_ready(request)
        words = "the worker stops, and it would not end in time"
        self._roster.ended(request, Outcome.RETRIED, flight, words)
        request.reject(requeue=True)
        job = job_of(request)
        if job is not None and not job.ready():
            job._set(job._job, (False, _lost()))


def _lost() -> ExceptionInfo:
    try:
        raise WorkerLostError("handed back")
    except WorkerLostError:
        return ExceptionInfo()
