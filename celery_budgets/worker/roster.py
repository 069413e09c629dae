"""The roster: the calls that this worker has in hand, per lane, and how each one ended.

Lives in the worker main process, which survives its pool processes: so it can give every
delivery exactly one outcome, also when the process that ran it is gone.

Covers: counting, the end of a call, settling a second delivery of a call that has ended.
Does not cover: when Celery tells a request what happened (:mod:`celery_budgets.worker.request`).
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from time import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from celery_budgets.outcomes import Outcome
from celery_budgets.process.recorder import Flight, FlightReader, recorder
from celery_budgets.telemetry.names import HEADER_SENT_AT
from celery_budgets.telemetry.statistics import Statistics
from celery_budgets.units import format_size

if TYPE_CHECKING:
    from celery_budgets.worker.request import BudgetedRequest

__all__ = ["Roster", "roster_of"]

logger = logging.getLogger(__name__)

#: Ended calls remembered, to settle a message that comes a second time.
REMEMBERED = 10_000
#: Ends after which the same message may rightly come again, as a new attempt.
_NOT_FINAL = frozenset({Outcome.RETRIED, Outcome.REJECTED})


class Roster:
    """Counts the calls of one worker.

    Args:
        flights: Reads the records of pool processes; ``None`` where calls run in this process.
    """

    def __init__(self, flights: FlightReader | None = None) -> None:
        self.flights = flights
        self.statistics = Statistics()
        #: Calls that run now, by lane.
        self.active: Counter[str] = Counter()
        self.in_hand: dict[str, BudgetedRequest] = {}
        #: Limits set by `celery control time_limit`: (soft, hard) by task name, seconds.
        self.overrides: dict[str, tuple[float | None, float | None]] = {}
        self.abandoned_threads = 0
        self._ended: OrderedDict[str, Outcome] = OrderedDict()
        # Pool threads, the watchdog and the event loop all report here.
        self._lock = threading.Lock()

    def accepted(self, request: BudgetedRequest) -> None:
        """Note that *request* runs now."""
        with self._lock:
            self.active[request.lane.name] += 1
            self.in_hand[request.id] = request

    def flight_of(self, request: BudgetedRequest) -> Flight | None:
        """Return what the process of *request* wrote down of it."""
        if self.flights is None:
            return recorder().take(request.id)
        return self.flights.read(request.worker_pid, request.id)

    def ended(
        self, request: BudgetedRequest, outcome: Outcome, flight: Flight | None = None
    ) -> None:
        """Give *request* its outcome; whatever is said of the same delivery later is dropped.

        Args:
            request: The delivery.
            outcome: How its call ended.
            flight: Its record, where the caller has read it already.
        """
        with self._lock:
            if request.outcome is not None:
                return
            request.outcome = outcome
            if self.in_hand.get(request.id) is request:
                del self.in_hand[request.id]
            ran = request.time_start is not None
            if ran:
                self.active[request.lane.name] -= 1
            self._remember(request.id, outcome)
        try:
            self._count(request, outcome, flight or (self.flight_of(request) if ran else None))
        except Exception:
            logger.exception("budgets.telemetry_failed task_id=%s", request.id)

    def _remember(self, task_id: str, outcome: Outcome) -> None:
        if outcome in _NOT_FINAL:
            self._ended.pop(task_id, None)
            return
        self._ended[task_id] = outcome
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _count(self, request: BudgetedRequest, outcome: Outcome, flight: Flight | None) -> None:
        seconds = _duration(request, flight)
        with self._lock:
            calls = self.statistics.of(request.lane.name, request.type)
            calls.outcomes[outcome.value] += 1
            if seconds is not None:
                calls.duration.add(seconds)
                calls.wait.add(_wait(request))
            exceeded = _exceeded(request, outcome, flight, seconds)
            calls.soft_limit_exceeded += exceeded
            if flight is not None:
                calls.rss_peak_bytes = max(calls.rss_peak_bytes or 0, flight.rss_peak_bytes)
        _log(request, outcome, seconds, flight, exceeded=exceeded)

    def already_ended(self, request: BudgetedRequest) -> Outcome | None:
        """Return how the call of a redelivered message ended in this worker, if it did.

        A broker hands a message out again when the connection was lost before it was
        acknowledged (kombu.transport.virtual.base.Channel.close), even if its call has ended.
        """
        if not request.delivery_info.get("redelivered"):
            return None
        return self._ended.get(request.id)


def _duration(request: BudgetedRequest, flight: Flight | None) -> float | None:
    """Return the seconds that the call took; ``None`` for one that never ran."""
    if flight is not None and flight.ended:
        return flight.wall_seconds
    if request.time_start is None:
        return None
    return max(0.0, time() - (flight.started_at if flight is not None else request.time_start))


def _wait(request: BudgetedRequest) -> float:
    """Return the seconds between publishing, or the ETA, and the start of the call."""
    started, headers = request.time_start or 0.0, request.request_dict
    sent = headers.get(HEADER_SENT_AT)
    due = request.eta.timestamp() if request.eta is not None else 0.0
    return max(0.0, started - max(sent or started, due))


def _exceeded(
    request: BudgetedRequest, outcome: Outcome, flight: Flight | None, seconds: float | None
) -> bool:
    if flight is not None and flight.ended:
        return flight.soft_exceeded
    over = seconds is not None and seconds > request.limits.soft
    return over or outcome in (Outcome.SOFT_TIME_LIMIT, Outcome.HARD_TIME_LIMIT)


def _log(
    request: BudgetedRequest, outcome: Outcome, seconds: float | None, flight: Flight | None,
    *, exceeded: bool,
) -> None:  # fmt: skip
    good = outcome in (Outcome.SUCCEEDED, Outcome.RETRIED) and not exceeded
    level = logging.INFO if good else logging.WARNING
    if not logger.isEnabledFor(level):
        return
    peak = format_size(flight.rss_peak_bytes) if flight is not None else "unknown"
    logger.log(
        level,
        "budgets.call_ended outcome=%s lane=%s task=%s task_id=%s seconds=%.3f rss_peak=%s"
        " soft_limit_exceeded=%s",
        outcome.value, request.lane.name, request.type, request.id, seconds or 0.0, peak,
        str(exceeded).lower(),
    )  # fmt: skip


_rosters: WeakKeyDictionary[Any, Roster] = WeakKeyDictionary()


def roster_of(app: Any) -> Roster:
    """Return the roster of the worker of *app* in this process."""
    roster = _rosters.get(app)
    if roster is None:
        roster = _rosters.setdefault(app, Roster())
    return roster
