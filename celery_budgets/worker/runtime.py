"""``WorkerRuntime``: the parts of one worker, and the order in which they are used.

Made when Celery makes the worker's consumer, before anything is started; from then on nothing of
it is missing. The bootsteps (:mod:`celery_budgets.worker.bootsteps`) bind it to Celery.

Lives in the worker main process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from celery_budgets.config.queues import lanes_of_queues
from celery_budgets.config.settings import settings_of
from celery_budgets.execution.call import Terms
from celery_budgets.execution.flight.reader import FlightReader
from celery_budgets.execution.flight.record import Flight, flight_in
from celery_budgets.execution.flight.recorder import recorder
from celery_budgets.model.outcomes import Outcome
from celery_budgets.model.priority import Broker, Priority, level_of
from celery_budgets.shared_state.kill_store import KillStore
from celery_budgets.worker.backlog.backlog import Backlog
from celery_budgets.worker.backlog.flow import Flow
from celery_budgets.worker.backlog.objectives import Objectives
from celery_budgets.worker.backlog.peers import LaneShare, Peers
from celery_budgets.worker.calls.ended_call import EndedCall
from celery_budgets.worker.calls.inherited_deadline import in_time
from celery_budgets.worker.calls.killed_span import KilledSpan
from celery_budgets.worker.calls.redelivery import is_settled
from celery_budgets.worker.calls.reruns import KillReruns
from celery_budgets.worker.calls.roster import CallEnd, Roster
from celery_budgets.worker.calls.scopes import revoke_if_cancelled
from celery_budgets.worker.lanes.drift import Drift
from celery_budgets.worker.lanes.held_deliveries import HeldDeliveries
from celery_budgets.worker.lanes.lane_limits import LaneLimits
from celery_budgets.worker.lanes.lane_slots import WorkerSlots
from celery_budgets.worker.lanes.leaving import Leaving
from celery_budgets.worker.lanes.operator_pauses import OperatorPauses
from celery_budgets.worker.lanes.queue_pauses import QueuePauses
from celery_budgets.worker.limits.fleet_leases import leases_of
from celery_budgets.worker.memory.admission import Admission
from celery_budgets.worker.memory.gate import Gate
from celery_budgets.worker.memory.gauges import gauges_of
from celery_budgets.worker.memory.replacement import give_memory_back
from celery_budgets.worker.pool.ending import end_soon
from celery_budgets.worker.pool.size import pool_name, slots_of
from celery_budgets.worker.pool.slow_calls import SlowCalls
from celery_budgets.worker.saved_states import SavedStateDeletion
from celery_budgets.worker.stacks.black_box import BlackBox
from celery_budgets.worker.stacks.kills import Kills
from celery_budgets.worker.transport.leftovers import Leftovers

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery
    from celery_budgets.worker.pool.abandoned_threads import AbandonedThreads
    from celery_budgets.worker.pool.processes import PoolProcesses
    from celery_budgets.worker.pool.time_limits import TimeLimitTimer

__all__ = ["WorkerRuntime", "keep", "runtime_of"]

#: How long a percentile is cached, seconds.
_P95_SECONDS = 5.0


class WorkerRuntime:
    """The parts of one worker.

    Args:
        consumer: The Celery consumer, which knows its worker.
        wake: Called, from any thread, to start calls soon that have waited for a slot.
        ring: The same, from a thread that knows nothing of the pool and its event loop.
    """

    def __init__(
        self, consumer: Any, wake: Callable[[], None], ring: Callable[[], None] = lambda: None
    ) -> None:
        app, worker = consumer.app, consumer.controller
        self._consumer = consumer
        self.settings = settings_of(app)
        self.pool_kind = pool_name(worker.pool_cls)
        #: The lanes that it serves.
        self.served = lanes_of_queues(self.settings.lanes, app.amqp.queues.consume_from)
        #: Reads the records of pool processes; ``None`` where calls run in this process. Made
        #: before the pool forks, so that each process finds the folder in its environment.
        self.flights = FlightReader() if self.pool_kind == "prefork" else None
        #: Where killed calls were, and where running ones are.
        self.black_box = BlackBox(self.flights, enabled=bool(self.settings.stacks))
        self.kills = Kills(partial(KillStore, app))
        #: Its report for remote control; set once the worker has started.
        self.report: Any = None
        #: The processes of the pool; ``None`` if it has none.
        self.processes: PoolProcesses | None = None
        #: Its timer of time limits; ``None`` if it has none.
        self.time_limits: TimeLimitTimer | None = None
        #: Threads that run on past their hard limit; ``None`` if the pool has no threads.
        self.threads: AbandonedThreads | None = None
        #: What a lost connection to Redis leaves to the next one.
        self.leftovers = Leftovers()
        #: Whether the worker runs in a thread of a program, which it must not end.
        self.embedded = False
        #: Limits set by `celery control time_limit`: (soft, hard) by task name, seconds.
        self.overrides: dict[str, tuple[float | None, float | None]] = {}
        self.reruns = KillReruns()
        self.roster = Roster()
        self.slow_calls = SlowCalls(self.roster, self.black_box)
        self.held = HeldDeliveries()
        #: Deliveries that wait for their ETA.
        self.awaited: set[Any] = set()
        self.leases = leases_of(app, self.settings, ring, self._end_soon)
        self._make_lanes(consumer, wake)
        self._make_gate(consumer)
        end_span = KilledSpan(self.terms, self.roster.count_failure).end
        # The record first: with its slot given back, a process may write of another call.
        delete_state = SavedStateDeletion(consumer.controller).look
        self.roster.on_end = [
            self._copy_record, self._give_slot_back, self._note, end_span, delete_state,
        ]  # fmt: skip
        self.roster.on_return = [self._copy_record, self._give_slot_back, end_span, delete_state]

    def _make_lanes(self, consumer: Any, wake: Callable[[], None]) -> None:
        lanes = self.settings.lanes
        self._read: dict[str, tuple[float, float | None]] = {}
        #: Where its priorities are ordered; ``None`` if the app has none.
        self.broker = Broker.of(consumer.app) if self.settings.priorities else None
        #: What it has started, for rates and for how old the messages of a lane are.
        self.flow = Flow(self.broker)
        self.objectives = Objectives(self.served)
        self.backlog = Backlog(self.served, self.flow, self.broker)
        self.peers = Peers(consumer.hostname, self.backlog, self._share_of)
        self.slots = WorkerSlots(
            lanes.values(), self._size, self._p95, wake,
            partial(_priority_of, self.broker) if self.broker is not None else None,
            self.settings.priority_aging, capacity=consumer.controller.concurrency,
            leases=self.leases,
        )  # fmt: skip
        self.queue_pauses = QueuePauses(consumer)
        self.pauses = OperatorPauses(consumer, self.queue_pauses, lanes, self.slots, self.held)
        self.leaving = Leaving(consumer, self.pauses, self.queue_pauses, self.served)
        self.limits = LaneLimits(consumer, lanes, self.slots, self.queue_pauses)
        self.drift = Drift(consumer, self.slots, self.queue_pauses)

    def _make_gate(self, consumer: Any) -> None:
        shared = self.pool_kind != "prefork"
        self.gate = Gate(
            gauges_of(self.settings, self.served, shared=shared), self.settings.max_pause
        )
        self.admission = Admission(
            consumer, self.queue_pauses, self.gate, self.roster, self.slots, self.held,
            fail=self.settings.rejection == "fail", renew=self._give_memory_back,
            keeps_calls=self.pool_kind == "threads",
        )  # fmt: skip

    def takes_in(self, request: Delivery) -> bool:
        """Return whether a delivery that has arrived goes on now; else it is kept or turned away.

        The first of three looks: it may be long until there is a place in the pool.
        """
        return not self.pauses.turn_away(request) and self.slots.take(request)

    def admits(self, request: Delivery) -> bool:
        """Return whether a call with a slot may go to the pool; a refusing check settles it."""
        return (
            not is_settled(request)
            and not revoke_if_cancelled(request)
            and in_time(request)
            and self.admission.admit(request)
        )

    def admits_start(self, request: Delivery) -> bool:
        """Return whether a call that waited in the pool may start now."""
        return self.admission.admit_start(request)

    def started(self, request: Delivery) -> None:
        """Note that the call of *request* has started, in whatever thread."""
        self.flow.started(request)
        if self.objectives.lanes:
            self.objectives.started(request)

    def terms(self, request: Delivery) -> tuple[Any, ...]:
        """Return the terms of *request*, at the moment that it gets its slot."""
        lane, limits, active = request.lane, request.limits, self.roster.active
        if not self.settings.tracing:
            # Only spans say how full the lanes are.
            return Terms.packed(lane.name, limits.soft, limits.hard, request.ceiling)
        return Terms.packed(
            lane.name, limits.soft, limits.hard, request.ceiling,
            active[lane.name] + 1, self.slots.limit_of(lane),
            active.total() + 1, self.slots.capacity,
            *((None, *self.leases.told(request)) if self.leases is not None else ()),
        )  # fmt: skip

    def flight_of(self, request: Delivery) -> Flight | None:
        """Return the flight record of *request*."""
        return flight_in(self._record_of(request), request.id)

    def running_flight_of(self, request: Delivery) -> Flight | None:
        """Return the flight record of a running call; ``None`` where calls run in this process.

        There, reading it would take it.
        """
        return None if self.flights is None else self.flight_of(request)

    @property
    def telemetry_failures(self) -> int:
        """Spans and records that could not be created, here and in the pool processes."""
        elsewhere = self.flights.failures() if self.flights is not None else 0
        return self.roster.failures + elsewhere

    @property
    def abandoned_threads(self) -> int:
        """Threads that run on past the hard limit of their call."""
        return self.threads.count if self.threads is not None else 0

    def look(self) -> None:
        """Update the counts for alerts and rates; called about once a second."""
        self.flow.look()
        self.slow_calls.look()
        self.leaving.look()
        if self.report is not None:
            self.report.history.look()
        self.roster.tally.recent.follow("telemetry_failures", self.telemetry_failures)
        if self.processes is not None:
            self.processes.look()

    def _record_of(self, request: Delivery) -> Flight | bytes | None:
        if self.flights is None:
            return recorder().take(request.id)
        return self.flights.copy(request.worker_pid)

    def _copy_record(self, end: CallEnd) -> None:
        if end.record is None and end.ran:
            end.record = self._record_of(end.request)

    def _give_slot_back(self, end: CallEnd) -> None:
        if not end.runs_on:
            self.slots.release(end.request, succeeded=end.outcome is Outcome.SUCCEEDED)

    def _note(self, end: CallEnd) -> None:
        self.roster.tally.note(EndedCall.of(end.request, end.outcome, end.record))
        if end.outcome is not Outcome.SUCCEEDED:
            self.kills.note(end.request, end.outcome)

    def _give_memory_back(self) -> None:
        give_memory_back(
            self._consumer, self.gate, prefork=self.flights is not None, embedded=self.embedded
        )

    def _end_soon(self, request: Delivery) -> None:
        self._consumer.call_soon(end_soon, request, self.time_limits)

    def _share_of(self, lane: str) -> LaneShare:
        busy = self.roster.active[lane] + self.roster.waiting()[lane]
        return LaneShare(busy, self.slots.limit_of(self.settings.lanes[lane]))

    def _size(self) -> int:
        controller = self._consumer.controller
        if controller.autoscaler is not None:
            return int(controller.max_concurrency)
        return slots_of(self._consumer.pool)

    def _p95(self, lane: str) -> float | None:
        read_at, p95 = self._read.get(lane, (-inf, None))
        if monotonic() - read_at > _P95_SECONDS:
            calls = self.roster.tally.statistics().lanes.get(lane)
            p95 = calls.duration.quantile(0.95) if calls is not None else None
            self._read[lane] = monotonic(), p95
        return p95


def _priority_of(broker: Broker, request: Delivery) -> Priority:
    return level_of(request.delivery_info.get("priority"), broker)


#: Attribute of an app that has the runtime of its worker in this process.
_RUNTIME = "_celery_budgets_runtime"


def keep(app: Any, runtime: WorkerRuntime) -> None:
    """Set *runtime* as that of the worker of *app*; replaces that of an earlier worker."""
    app.__dict__[_RUNTIME] = runtime


def runtime_of(app: Any) -> WorkerRuntime:
    """Return the runtime of the worker of *app* in this process.

    Raises:
        RuntimeError: There is none.
    """
    runtime: WorkerRuntime | None = app.__dict__.get(_RUNTIME)
    if runtime is None:
        raise RuntimeError(f"no worker of {app!r} runs in this process")
    return runtime
