"""The roster: the calls that this worker has in hand, per lane, and how each one ended.

Lives in the worker main process, which survives its pool processes: so it can give every
delivery exactly one outcome, also when the process that ran it is gone.

Covers: calls that run, the end of a call, settling a second delivery of one that has ended.
Does not cover: when Celery tells a request what happened (:mod:`celery_budgets.worker.request`),
and what calls add up to (:mod:`celery_budgets.worker.calls.tally`).
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

from celery.worker import state

from celery_budgets.config.settings import settings_of
from celery_budgets.execution.call import Terms
from celery_budgets.execution.flight.record import Flight, flight_in
from celery_budgets.execution.flight.recorder import FlightReader, recorder
from celery_budgets.model.lanes import Lane
from celery_budgets.model.outcomes import Outcome
from celery_budgets.model.per_process import PerProcess
from celery_budgets.telemetry.attributes import WORKER
from celery_budgets.telemetry.killed_spans import end_for_process
from celery_budgets.telemetry.spans import call_attributes
from celery_budgets.worker.calls.ended_call import EndedCall
from celery_budgets.worker.calls.reruns import KillReruns
from celery_budgets.worker.calls.tally import Tally

if TYPE_CHECKING:
    from celery_budgets.worker.lanes.drift import Drift
    from celery_budgets.worker.lanes.lane_limits import LaneLimits
    from celery_budgets.worker.lanes.lane_slots import WorkerSlots
    from celery_budgets.worker.lanes.operator_pauses import OperatorPauses
    from celery_budgets.worker.lanes.queue_pauses import QueuePauses
    from celery_budgets.worker.memory.admission import Admission
    from celery_budgets.worker.memory.gate import Gate
    from celery_budgets.worker.pool.processes import PoolProcesses
    from celery_budgets.worker.request import BudgetedRequest

__all__ = ["Roster", "roster_of"]

logger = logging.getLogger(__name__)

#: Ended calls remembered, to settle a message that comes a second time.
REMEMBERED = 10_000
#: Ends that the process of a call may not have lived to tell.
_ENDED_HERE = frozenset(
    {
        Outcome.HARD_TIME_LIMIT, Outcome.MEMORY_LIMIT, Outcome.WORKER_LOST, Outcome.REVOKED,
        Outcome.REJECTED,
    }
)  # fmt: skip
#: Ends after which the same message may rightly come again, as a new attempt.
_NOT_FINAL = frozenset({Outcome.RETRIED, Outcome.REJECTED})


class Roster:
    """Counts the calls of one worker.

    Args:
        flights: Reads the records of pool processes; ``None`` where calls run in this process.
    """

    def __init__(self, flights: FlightReader | None = None) -> None:
        self.flights = flights
        #: What they added up to, once they have ended.
        self.tally = Tally(self.count_failure)
        #: Calls that run now, by lane.
        self.active: Counter[str] = Counter()
        #: Deliveries that run, by message: twins with one idempotency key share their id.
        self.in_hand: dict[tuple[str, float | None], BudgetedRequest] = {}
        #: Limits set by `celery control time_limit`: (soft, hard) by task name, seconds.
        self.overrides: dict[str, tuple[float | None, float | None]] = {}
        self.abandoned_threads = 0
        #: Does the worker run in a thread of a program, which it may not end?
        self.embedded = False
        self._failures = 0
        #: Slots taken back by the safety net (worker.slot_recovery).
        self.slots_recovered = 0
        #: Calls that were handed out again while they were in hand here, by lane.
        self.redelivered: Counter[str] = Counter()
        #: Are processes told how full the lanes are? Only spans say it.
        self.tells_slots = True
        #: Calls that this worker may run at once, over all its lanes.
        self.capacity = 0
        #: Whether calls are admitted, and by whom; ``None`` without a memory guard.
        self.gate: Gate | None = None
        self.admission: Admission | None = None
        #: What the lanes may run at once; ``None`` until the consumer is there.
        self.slots: WorkerSlots | None = None
        #: The queues of the consumer, and why some are paused.
        self.consuming: QueuePauses | None = None
        #: What an operator changes of the lanes, and what somebody else has changed.
        self.limits: LaneLimits | None = None
        self.pauses: OperatorPauses | None = None
        self.drift: Drift | None = None
        #: Those of the pool; ``None`` where it has none.
        self.processes: PoolProcesses | None = None
        self.offenders = KillReruns()
        self._ended: OrderedDict[tuple[str, float | None], Outcome] = OrderedDict()
        # Pool threads, the watchdog and the event loop all report here.
        self._lock = threading.Lock()

    def count_failure(self) -> None:
        """Note that a span or a record could not be made."""
        self._failures += 1

    @property
    def telemetry_failures(self) -> int:
        """Spans and records that could not be made, here and in the pool processes."""
        return self._failures + (self.flights.failures() if self.flights is not None else 0)

    def look(self) -> None:
        """Note what alerts are about: failures since the last look, processes that stay away."""
        self.tally.recent.follow("telemetry_failures", self.telemetry_failures)
        if self.processes is not None:
            self.processes.look()

    def accepted(self, request: BudgetedRequest) -> None:
        """Note that *request* runs now."""
        with self._lock:
            if request.outcome is not None and not request.runs_on:
                return  # revoked while it was on its way into the pool
            request.counted = True
            self.active[request.lane.name] += 1
            if request.outcome is None:
                self.in_hand[request.message_key] = request

    def comes_back(self, request: BudgetedRequest) -> None:
        """Give back what *request* held since it was terminated: the pool is done with it."""
        with self._lock:
            request.runs_on = False
            if request.outcome is None:
                return
            if request.counted:
                self.active[request.lane.name] -= 1
        self.leaves(request)
        try:
            self._tell(request, request.outcome, self.flight_of(request), "terminated")
        except Exception:
            self.count_failure()
            logger.exception("budgets.telemetry_failed task_id=%s", request.id)

    def rejected(self, request: BudgetedRequest, reason: str) -> None:
        """Count a delivery that is not admitted: handed back, or failed."""
        self.tally.reject(request.lane.name, request.type, reason)

    def waiting(self) -> Counter[str]:
        """Return the deliveries in hand that do not run yet, by lane."""
        # Celery before 5.7 keeps no set of calls that wait for their ETA.
        sets = (state.reserved_requests, getattr(state, "scheduled_requests", None))
        held = [request for requests in sets for request in _members(requests)]
        return Counter(
            request.lane.name
            for request in held
            if getattr(request, "lane", None) is not None and request.time_start is None
        )

    def limit_of(self, lane: Lane) -> int:
        """Return how many calls of *lane* this worker may run at once now."""
        if self.slots is None:
            return min(lane.concurrency, self.capacity)
        # A worker may be started with fewer slots than its lane has: celery worker -c.
        return min(self.slots.lanes[lane.name].limit, self.capacity)

    def leaves(self, request: BudgetedRequest) -> None:
        """Give back the slot of a delivery that is not, or no longer, in the pool."""
        if self.slots is not None:
            self.slots.release(request)

    def terms(self, request: BudgetedRequest) -> tuple[Any, ...]:
        """Return what the process of *request* is told, at the moment that it gets its slot.

        The fields of :class:`celery_budgets.execution.call.Terms`, without the class: to pickle
        that takes longer than all the rest.
        """
        lane, limits = request.lane, request.limits
        if not self.tells_slots:
            return lane.name, limits.soft, limits.hard, request.ceiling
        return (
            lane.name, limits.soft, limits.hard, request.ceiling,
            self.active[lane.name] + 1, self.limit_of(lane),
            self.active.total() + 1, self.capacity,
        )  # fmt: skip

    def flight_of(self, request: BudgetedRequest) -> Flight | None:
        """Return what the process of *request* wrote down of it."""
        return flight_in(self._record_of(request), request.id)

    def _record_of(self, request: BudgetedRequest) -> Flight | bytes | None:
        if self.flights is None:
            return recorder().take(request.id)
        return self.flights.copy(request.worker_pid)

    def ended(
        self,
        request: BudgetedRequest,
        outcome: Outcome,
        flight: Flight | None = None,
        reason: str = "",
    ) -> None:
        """Give *request* its outcome; whatever is said of the same delivery later is dropped.

        Args:
            request: The delivery.
            outcome: How its call ended.
            flight: Its record, where the caller has read it already.
            reason: Why, in words, where it did not succeed.
        """
        with self._lock:
            if request.outcome is not None:
                return
            request.outcome = outcome
            key = request.message_key
            if self.in_hand.get(key) is request:
                del self.in_hand[key]
            ran = request.time_start is not None
            runs_on = request.runs_on
            if request.counted and not runs_on:
                self.active[request.lane.name] -= 1
            lost_and_back = outcome is Outcome.WORKER_LOST and request.task.reject_on_worker_lost
            self._remember(key, outcome, final=not lost_and_back)
        if not runs_on:
            self.leaves(request)
        try:
            # Before its process writes of another call; read when this one is counted.
            record = self._record_of(request) if flight is None and ran else flight
            self.tally.note(EndedCall.of(request, outcome, record))
            if outcome in _ENDED_HERE and not runs_on:
                self._tell(request, outcome, flight_in(record, request.id), reason)
        except Exception:
            self.count_failure()
            logger.exception("budgets.telemetry_failed task_id=%s", request.id)

    def _remember(self, key: tuple[str, float | None], outcome: Outcome, *, final: bool) -> None:
        # By the message: a call that is sent anew under the same id has not ended.
        if outcome in _NOT_FINAL or not final:
            self._ended.pop(key, None)
            return
        self._ended[key] = outcome
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _tell(
        self, request: BudgetedRequest, outcome: Outcome, flight: Flight | None, reason: str
    ) -> None:
        """End the span of a call that its own process has not ended."""
        if flight is not None and flight.ended:
            return
        settings = settings_of(request.app)
        if not settings.tracing:
            return
        headers, terms = request.request_dict, Terms(*self.terms(request))
        name = settings.span_name or f"run/{request.type}"
        told = end_for_process(
            name.format(lane=request.lane.name, task=request.type),
            {
                **call_attributes(request.app, request.type, headers, terms),
                WORKER: request.hostname,
            },
            headers, outcome, reason or outcome.value, flight,
        )  # fmt: skip
        if not told and flight is not None and any(flight.span_id):
            self.count_failure()
            logger.warning(
                "budgets.span_lost task_id=%s outcome=%s: set the tracer provider in the "
                "worker main process too", request.id, outcome.value,
            )  # fmt: skip

    def already_ended(self, request: BudgetedRequest) -> Outcome | None:
        """Return how the call of a message that comes again ended in this worker, if it did."""
        return self._ended.get(request.message_key)


def _members(requests: Any) -> list[Any]:
    """Return the requests in a WeakSet that another thread may change meanwhile.

    To iterate over it would then fail; the list of its references is made in one step.
    """
    references = list(requests.data) if requests is not None else []
    return [request for reference in references if (request := reference()) is not None]


_rosters = PerProcess(Roster)


def roster_of(app: Any) -> Roster:
    """Return the roster of the worker of *app* in this process."""
    return _rosters.of(app)
