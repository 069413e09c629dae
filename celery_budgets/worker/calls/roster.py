"""The roster: the running calls of this worker, per lane, and the outcome of each.

Lives in the worker main process, which survives its pool processes: so it gives every delivery
exactly one outcome, even if the process that ran it has died.

Covers: running calls, the end of a call, redeliveries of ended calls.
Does not cover: the events of a call (:mod:`celery_budgets.worker.request`), the actions at its end
(:mod:`celery_budgets.worker.runtime` lists them), and statistics
(:mod:`celery_budgets.worker.calls.tally`).
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from celery.worker import state

from celery_budgets.execution.flight.record import Flight
from celery_budgets.model.outcomes import Outcome
from celery_budgets.worker.calls.tally import Tally

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["CallEnd", "Ended", "Roster", "SentAgain", "members_of"]

logger = logging.getLogger(__name__)

#: Ended calls that are remembered, to settle a redelivered message.
REMEMBERED = 10_000
#: Calls that were sent again and are remembered.
SENT_AGAIN = 1_000
#: Outcomes after which a redelivery of the same message is a new attempt.
_NOT_FINAL = frozenset({Outcome.RETRIED, Outcome.REJECTED})


#: How a call ended, and when, seconds since the epoch. A tuple of each call is kept: no class.
Ended: TypeAlias = tuple[Outcome, float]


class SentAgain(NamedTuple):
    """A call whose message was sent again: a retry, a twin that waits, or a killed call."""

    task_id: str
    #: Seconds since the epoch.
    at: float
    queue: str
    twin: bool


@dataclass(slots=True)
class CallEnd:
    """The end of one call, which is passed to :attr:`Roster.on_end`."""

    request: Delivery
    outcome: Outcome
    #: Its flight record: an unread copy, or unpacked.
    record: Flight | bytes | None
    #: Why it did not succeed, as text.
    reason: str
    #: Whether it had started.
    ran: bool
    #: Whether its process is still busy with it after a termination; then it keeps its slot.
    runs_on: bool
    #: Whether the killed call was sent again.
    again: bool = False


class Roster:
    """Tracks the calls of one worker."""

    def __init__(self) -> None:
        #: The statistics of ended calls.
        self.tally = Tally(self.count_failure)
        #: Calls that run now, by lane.
        self.active: Counter[str] = Counter()
        #: Running deliveries, by message: twins with one idempotency key share their id.
        self.in_hand: dict[tuple[str, float | None], Delivery] = {}
        #: Called with each end, in this order; an exception does not stop the others.
        self.on_end: list[Callable[[CallEnd], object]] = []
        #: Called, in this order, when the process of a terminated call has finished with it.
        self.on_return: list[Callable[[CallEnd], object]] = []
        #: Spans and records that could not be created here.
        self.failures = 0
        #: Slots taken back by the safety net (worker.lanes.slot_recovery).
        self.slots_recovered = 0
        #: Calls that have raised ``Throttled``, by limit.
        self.throttled: Counter[str] = Counter()
        #: Calls that were redelivered before they ended here, by lane.
        self.redelivered: Counter[str] = Counter()
        self._ended: OrderedDict[tuple[str, float | None], Ended] = OrderedDict()
        #: The last calls whose message was sent again, by the call itself or for it.
        self._sent_again: deque[SentAgain] = deque(maxlen=SENT_AGAIN)
        # Pool threads, the watchdog and the event loop all report here.
        self._lock = threading.Lock()

    def count_failure(self) -> None:
        """Count a span or a record that could not be created."""
        self.failures += 1

    def recovered(self, request: Delivery) -> None:
        """Forget *request*, which the pool has lost, and count its slot."""
        self.slots_recovered += 1
        self.tally.recent.count(request.lane.name, "slots_recovered")
        self.in_hand.pop(request.message_key, None)

    def accepted(self, request: Delivery) -> None:
        """Record that *request* runs now."""
        with self._lock:
            if request.outcome is not None and not request.runs_on:
                return  # revoked before the pool had accepted it
            request.counted = True
            self.active[request.lane.name] += 1
            if request.outcome is None:
                self.in_hand[request.message_key] = request

    def rejected(self, request: Delivery, reason: str) -> None:
        """Count a delivery that is not admitted: requeued or failed."""
        self.tally.reject(request.lane.name, request.type, reason)

    def waiting(self) -> Counter[str]:
        """Return the deliveries that have not started, by lane."""
        # Celery before 5.7 keeps no set of calls that wait for their ETA.
        sets = (state.reserved_requests, getattr(state, "scheduled_requests", None))
        held = [request for requests in sets for request in members_of(requests)]
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
        *,
        again: bool = False,
    ) -> None:
        """Give *request* its outcome; later reports on the same delivery are ignored.

        Args:
            request: The delivery.
            outcome: How its call ended.
            flight: Its flight record, if the caller has read it already.
            reason: Why it did not succeed, as text.
            again: Whether the killed call was sent again.
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
            if again or outcome is Outcome.RETRIED:
                twin = flight is not None and flight.twin
                queue = request.delivery_info["routing_key"]
                self._sent_again.append(SentAgain(key[0], time(), queue, twin=twin))
        self._tell(self.on_end, CallEnd(request, outcome, flight, reason, ran, runs_on, again))

    def comes_back(self, request: Delivery) -> None:
        """Release what a terminated *request* still held, when the pool has finished with it."""
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
        # By message: a call that is sent again with the same id has not ended.
        if outcome in _NOT_FINAL or not final:
            self._ended.pop(key, None)
            return
        self._ended[key] = outcome, time()
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def already_ended(self, request: Delivery) -> Outcome | None:
        """Return how the call of a redelivered message ended in this worker, if it did."""
        ended = self._ended.get(request.message_key)
        return ended[0] if ended is not None else None

    def end_of(self, task_id: str) -> Ended | None:
        """Return how and when the call *task_id* ended here last, if it is remembered."""
        with self._lock:
            ends = [ended for key, ended in self._ended.items() if key[0] == task_id]
        return max(ends, key=itemgetter(1), default=None)

    def sent_again(self, task_id: str) -> SentAgain | None:
        """Return when *task_id* was last sent again from here, if it is remembered."""
        with self._lock:
            found = [sent for sent in self._sent_again if sent.task_id == task_id]
        return found[-1] if found else None


def members_of(requests: Any) -> list[Any]:
    """Return the requests in a WeakSet that another thread may change meanwhile.

    Iterating over the set could fail; a list of its references is created in one step.
    """
    references = list(requests.data) if requests is not None else []
    return [request for reference in references if (request := reference()) is not None]
