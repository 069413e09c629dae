"""The roster: the calls that this worker has in hand, per lane, and how each one ended.

Lives in the worker main process, which survives its pool processes: so it can give every
delivery exactly one outcome, also when the process that ran it is gone.

Covers: calls that run, the end of a call, settling a second delivery of one that has ended.
Does not cover: when Celery tells a request what happened (:mod:`celery_budgets.worker.request`),
what follows from an end (:mod:`celery_budgets.worker.runtime` lists it), and what calls add up to
(:mod:`celery_budgets.worker.calls.tally`).
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.worker import state

from celery_budgets.execution.flight.record import Flight
from celery_budgets.model.outcomes import Outcome
from celery_budgets.worker.calls.tally import Tally

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["CallEnd", "Roster"]

logger = logging.getLogger(__name__)

#: Ended calls remembered, to settle a message that comes a second time.
REMEMBERED = 10_000
#: Ends after which the same message may rightly come again, as a new attempt.
_NOT_FINAL = frozenset({Outcome.RETRIED, Outcome.REJECTED})


@dataclass(slots=True)
class CallEnd:
    """The end of one call, on its way through :attr:`Roster.on_end`."""

    request: Delivery
    outcome: Outcome
    #: What its process wrote down; a copy that nobody has read yet, or as it was read.
    record: Flight | bytes | None
    #: Why, in words, where it did not succeed.
    reason: str
    #: Had it started?
    ran: bool
    #: Is its process still busy with it, since it was terminated? Then it keeps its slot.
    runs_on: bool


class Roster:
    """Counts the calls of one worker."""

    def __init__(self) -> None:
        #: What they added up to, once they have ended.
        self.tally = Tally(self.count_failure)
        #: Calls that run now, by lane.
        self.active: Counter[str] = Counter()
        #: Deliveries that run, by message: twins with one idempotency key share their id.
        self.in_hand: dict[tuple[str, float | None], Delivery] = {}
        #: Told of each end, in this order; one that raises keeps no other from being told.
        self.on_end: list[Callable[[CallEnd], object]] = []
        #: Told when the process of a call that was terminated is done with it, in this order.
        self.on_return: list[Callable[[CallEnd], object]] = []
        #: Spans and records that could not be made here.
        self.failures = 0
        #: Slots taken back by the safety net (worker.lanes.slot_recovery).
        self.slots_recovered = 0
        #: Calls that were handed out again while they were in hand here, by lane.
        self.redelivered: Counter[str] = Counter()
        self._ended: OrderedDict[tuple[str, float | None], Outcome] = OrderedDict()
        # Pool threads, the watchdog and the event loop all report here.
        self._lock = threading.Lock()

    def count_failure(self) -> None:
        """Note that a span or a record could not be made."""
        self.failures += 1

    def recovered(self, request: Delivery) -> None:
        """Forget *request*, which the pool has lost, and count that."""
        self.slots_recovered += 1
        self.tally.recent.count(request.lane.name, "slots_recovered")
        self.in_hand.pop(request.message_key, None)

    def accepted(self, request: Delivery) -> None:
        """Note that *request* runs now."""
        with self._lock:
            if request.outcome is not None and not request.runs_on:
                return  # revoked while it was on its way into the pool
            request.counted = True
            self.active[request.lane.name] += 1
            if request.outcome is None:
                self.in_hand[request.message_key] = request

    def rejected(self, request: Delivery, reason: str) -> None:
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

    def ended(
        self,
        request: Delivery,
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
            ran, runs_on = request.time_start is not None, request.runs_on
            if request.counted and not runs_on:
                self.active[request.lane.name] -= 1
            lost_and_back = outcome is Outcome.WORKER_LOST and request.task.reject_on_worker_lost
            self._remember(key, outcome, final=not lost_and_back)
        self._tell(self.on_end, CallEnd(request, outcome, flight, reason, ran, runs_on))

    def comes_back(self, request: Delivery) -> None:
        """Give back what *request* held since it was terminated: the pool is done with it."""
        with self._lock:
            request.runs_on = False
            if request.outcome is None:
                return
            if request.counted:
                self.active[request.lane.name] -= 1
        end = CallEnd(request, request.outcome, None, "terminated", ran=True, runs_on=False)
        self._tell(self.on_return, end)

    def _tell(self, listeners: list[Callable[[CallEnd], object]], end: CallEnd) -> None:
        for listener in listeners:
            try:
                listener(end)
            except Exception:
                self.count_failure()
                logger.exception("budgets.telemetry_failed task_id=%s", end.request.id)

    def _remember(self, key: tuple[str, float | None], outcome: Outcome, *, final: bool) -> None:
        # By the message: a call that is sent anew under the same id has not ended.
        if outcome in _NOT_FINAL or not final:
            self._ended.pop(key, None)
            return
        self._ended[key] = outcome
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def already_ended(self, request: Delivery) -> Outcome | None:
        """Return how the call of a message that comes again ended in this worker, if it did."""
        return self._ended.get(request.message_key)


def _members(requests: Any) -> list[Any]:
    """Return the requests in a WeakSet that another thread may change meanwhile.

    To iterate over it would then fail; the list of its references is made in one step.
    """
    references = list(requests.data) if requests is not None else []
    return [request for reference in references if (request := reference()) is not None]
