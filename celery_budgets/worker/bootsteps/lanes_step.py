"""The bootstep that lets several lanes share one worker, each within its own limit.

It wraps ``Consumer.on_task_request``: a call first gets a slot of its lane, or waits for one.
See also: :mod:`celery_budgets.worker.lanes.lane_slots`, which grants slots, and
:mod:`celery_budgets.worker.lanes.lane_consumer`, which limits what the broker sends ahead.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.utils.quorum_queues import detect_quorum_queues
from celery.worker import state
from celery.worker.consumer.tasks import Tasks

from celery_budgets.config.settings import settings_of
from celery_budgets.model.priority import Broker, Priority, number_of
from celery_budgets.worker.bootsteps.loop_bell import LoopBell
from celery_budgets.worker.lanes.consumer_renewal import ConsumerRenewal
from celery_budgets.worker.lanes.dropped_calls import DroppedCalls
from celery_budgets.worker.lanes.held_deliveries import give_back_soon, is_waiting, take_waiting
from celery_budgets.worker.lanes.lane_consumer import LaneConsumer
from celery_budgets.worker.lanes.low_priority import LOOK, AgingSteps, LowPriorityQueues
from celery_budgets.worker.lanes.self_waiting import SelfWaiting
from celery_budgets.worker.lanes.slot_recovery import SlotRecovery
from celery_budgets.worker.pool.jobs import started_messages
from celery_budgets.worker.runtime import WorkerRuntime, keep
from celery_budgets.worker.startup.stray_queues import tell_of_abandoned
from celery_budgets.worker.transport.aside_messages import send_back
from celery_budgets.worker.transport.connecting import connect_by

if TYPE_CHECKING:
    from celery.worker.request import Request

    from celery_budgets.shared_state.answers import Aside
    from celery_budgets.worker.delivery import Delivery

__all__ = ["LanesStep"]

logger = logging.getLogger(__name__)

#: Interval of checks for changes by operators and other code, seconds.
TICK = 1.0
#: Longest wait for the broker in the loop of gevent, seconds.
DRAIN = 0.05


class LanesStep(bootsteps.StartStopStep):
    """Reserves a slot for each budgeted call before it enters the pool."""

    label = "Budgets lanes"
    requires = (Tasks,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._consumer = c
        settings = settings_of(c.app)
        self._lanes = settings.lanes
        self._timer_entries: list[Any] = []
        self._woken = False
        self._first_start = True
        #: Deliveries that wait for their ETA, by queue: the broker counts them as unacknowledged.
        self._later: Counter[str] = Counter()
        self._bell = LoopBell(c, self._start_due)
        #: What waited aside, and is to be sent back to its queue.
        self._to_send: deque[list[Aside]] = deque()
        self._runtime = runtime = WorkerRuntime(c, self._wake, self._bell.ring)
        self._awaited = runtime.awaited
        keep(c.app, runtime)
        self._broker = runtime.broker
        self._roster, self.slots = runtime.roster, runtime.slots
        self._queue_pauses = queue_pauses = runtime.queue_pauses
        queue_pauses.attach()
        self._waits = SelfWaiting(self.slots, runtime.flights)
        self._untracked = DroppedCalls(self.slots, runtime.flights)
        self._recovery = SlotRecovery(self.slots, self._roster, self._is_waiting)
        self._renewals = ConsumerRenewal(c, self._lanes, self.slots, self._prefetch)
        # Before the strategies are built, which keep the attribute (celery.worker.strategy).
        self._hand_over, c.on_task_request = c.on_task_request, self.take_in
        runtime.leftovers = connect_by(
            c, settings.redis_transport, lambda: started_messages(self.slots.reserved())
        )
        queues = c.app.amqp.queues.consume_from
        served = runtime.served
        for slots in self.slots.lanes.values():
            slots.served = slots.lane in served
        self._low: LowPriorityQueues | None = None
        if self._broker is Broker.RABBITMQ:
            self._low = LowPriorityQueues(served, queue_pauses, self.slots)
            # Before it is acknowledged, upon which the broker sends the next one.
            self.slots.on_low = partial(c.call_soon, self._low.look)
        _restore_consumer(c.app)
        #: Whether Celery's own consumer suffices, if a channel's prefetch count can be changed.
        self._alone = len(queues) == 1 and self._broker is None
        if served:
            signals.task_received.connect(self._on_received, sender=c)
            c.app.amqp.Consumer = partial(self._consumer_of, c.app.amqp.Consumer)

    def start(self, c: Any) -> None:
        """Forget the deliveries of lost channels, but for what runs; again at each reconnect."""
        if self._runtime.leftovers:
            # Of queues that are not consumed now.
            self._runtime.leftovers.take_over(c.connection.channel())
        self._later.clear()
        self._awaited.clear()
        self._renewals.lose_connection()
        self._recovery.lose_connection()
        if self._first_start:
            self._first_start = False
            tell_of_abandoned(c.app)
        self.slots.give_up_held()
        self._runtime.held.lose_connection()
        if self._runtime.flights is not None:
            # Celery has dropped the calls that no process had accepted (Consumer.on_close).
            reserved = self.slots.reserved()
            self._untracked.add(call for call in reserved if call not in state.active_requests)
        if c.hub is None:
            c.connection.drain_events = partial(_drain_soon, c.connection.drain_events)
        self._disarm(c)
        if self._runtime.leases is not None:
            self._bell.attach()
            self._runtime.leases.start(self._send_back_soon)
        self._timer_entries = [c.timer.call_repeatedly(TICK, c.call_soon, (self._look,))]
        if c.hub is not None and self._runtime.flights is not None:
            # Not elsewhere: on solo a body blocks the timers, and threads do not wake the loop.
            self._roster.tally.call_later = c.hub.call_later
        if self._low is not None:
            look = c.timer.call_repeatedly(LOOK, c.call_soon, (self._low.look,))
            self._timer_entries.append(look)

    def stop(self, c: Any) -> None:
        """Start nothing any more; what waits goes back to the broker, at the latest with it."""
        self._disarm(c)
        if self._runtime.leases is not None:
            if c.blueprint.state != bootsteps.RUN:
                self._runtime.leases.leave_asides()
            self._pass_asides()
        if c.blueprint.state == bootsteps.RUN:  # it reconnects
            self.slots.give_up_held()
        else:  # and what runs may take long to end
            give_back_soon(take_waiting(c, self.slots))
        # Without its consumer the event loop does not run, and fires no timer.
        self._roster.tally.call_later = None
        self._roster.tally.count_noted()

    def shutdown(self, c: Any) -> None:
        """Give back places of limits over the fleet, once the pool has stopped."""
        if self._runtime.leases is not None:
            self._runtime.leases.stop()
            self._bell.close()

    def take_in(self, request: Request) -> None:
        """Pass *request* to the pool once its lane has a slot. Replaces on_task_request."""
        if request in self._awaited:
            # By request: a call that was held comes here again.
            self._awaited.discard(request)
            self._later[request.delivery_info["routing_key"]] -= 1
        # The request of a plain task has no lane: it goes to the pool, as in Celery.
        if getattr(request, "lane", None) is None or self._runtime.takes_in(request):
            self._hand_over(request)
        if self._renewals.needed:
            self._renewals.look_soon(request.delivery_info["routing_key"])

    def _wake(self) -> None:
        if self._woken:
            return
        self._woken = True
        if self._consumer.hub is None:
            # Not here: the greenlet that is ending still occupies its place in the pool.
            self._consumer.timer.call_after(0, self._start_due)
        else:
            self._consumer.call_soon(self._start_due)

    def _send_back_soon(self, asides: list[Aside]) -> None:
        self._to_send.append(asides)
        self._bell.ring()

    def _pass_asides(self) -> None:
        """Let go of calls that wait aside, and send back those whose turn it is."""
        for request in self.slots.stepped_aside():
            request.step_aside()
        while self._to_send and self._runtime.leases is not None:
            self._runtime.leases.sent(send_back(self._consumer.app, self._to_send.popleft()))

    def _start_due(self) -> None:
        self._woken = False
        if self._runtime.leases is not None:
            self._pass_asides()
        for request in self.slots.due():
            self._hand_over(request)
        self._bell.stay_awake()  # to acknowledge what steps aside: others wait behind it

    def _on_received(self, request: Request, **_: Any) -> None:
        if request.eta is not None:
            self._awaited.add(request)
            queue = request.delivery_info["routing_key"]
            self._later[queue] += 1
            if self._renewals.needed:
                self._renewals.note(queue, request.eta)
            else:
                self._consumer.call_soon(self._recount, queue)

    def _recount(self, queue: str) -> None:
        consumer = self._consumer.task_consumer
        if isinstance(consumer, LaneConsumer):
            consumer.recount(queue)

    def _consumer_of(self, plain: Any, channel: Any, **kwargs: Any) -> Any:
        """Return the consumer of the queues; *plain* creates Celery's own."""
        apply_global = getattr(self._consumer, "qos_global", None)
        if apply_global is None:  # before Celery 5.7
            apply_global = not channel.qos_semantics_matches_spec and not self._has_quorum_queues()
        if channel.transport.driver_type != "amqp":
            apply_global = True  # kombu's own counts can be changed at any time
        self._renewals.needed = not apply_global
        if self._alone and apply_global:
            return plain(channel, **kwargs)
        return LaneConsumer(
            channel, prefetch=self._prefetch, apply_global=apply_global, prepare=self._prepare,
            withheld=self._withheld, **kwargs,
        )  # fmt: skip

    def _has_quorum_queues(self) -> bool:
        """Mirrors celery.worker.consumer.tasks.Tasks.qos_global, which keeps it since 5.7."""
        if not self._consumer.app.conf.get("worker_detect_quorum_queues"):
            return False
        driver = self._consumer.connection.transport.driver_type
        return bool(detect_quorum_queues(self._consumer.app, driver)[0])

    def _prepare(self, queue: str, channel: Any) -> None:
        lane = self._lanes.of_queue(queue)
        if self._broker is Broker.REDIS and lane is not None:
            is_due = partial(self.slots.low_is_due, lane.name)
            channel.priority_steps = AgingSteps(channel.priority_steps, is_due)
            if hasattr(channel, "waits"):
                channel.waits.watch(number_of(level, Broker.REDIS) for level in Priority)

    def _prefetch(self, queue: str) -> int | None:
        lane = self._lanes.of_queue(queue)
        if lane is None:
            return None
        slots = self.slots.lanes[lane.name]
        later = 0 if self._renewals.needed else self._later[queue]
        if queue != lane.queue and self._low is not None:
            return self._low.prefetch(lane) + later
        ahead = slots.most * int(self._consumer.prefetch_multiplier)
        return ahead + later if ahead else 0  # 0: no bound, as in Celery

    def _look(self) -> None:
        if state.should_terminate:
            return  # a cold stop has ended the pool: celery.apps.worker.on_cold_shutdown
        for look in (
            self._runtime.pauses.look, self._runtime.limits.look, self._runtime.drift.look,
            self._waits.look, self._untracked.look, self._start_due,
            self._roster.tally.count_noted, self._runtime.look, self._recovery.look,
        ):  # fmt: skip
            try:
                look()
            except self._consumer.connection_errors:
                raise  # Celery reconnects
            except Exception:
                # Raised in the event loop, it would end the worker.
                logger.exception("budgets.lanes_look_failed")

    def _is_waiting(self, request: Delivery) -> bool:
        """Return whether a call waits for a place in the pool, or was dropped from it."""
        return is_waiting(self._consumer, request) or request in self._untracked

    def _withheld(self) -> list[Any]:
        """Return the queues of lanes that are not consumed now, which purge includes."""
        known = self._consumer.app.amqp.queues
        return [known[name] for name in self._queue_pauses.paused]

    def _disarm(self, c: Any) -> None:
        while self._timer_entries:
            c.timer.cancel(self._timer_entries.pop())


def _drain_soon(drain: Callable[..., Any], timeout: float, **kwargs: Any) -> Any:
    """Wait for the broker, at most :data:`DRAIN` seconds.

    celery.worker.loops.synloop (5.7) waits 2 s and acknowledges ended calls only in between: a full
    worker would start new calls only every 2 s.
    """
    return drain(timeout=min(timeout, DRAIN), **kwargs)


def _restore_consumer(app: Any) -> None:
    """Restore ``amqp.Consumer`` after an earlier worker of *app* in this process."""
    ours = vars(app.amqp).get("Consumer")
    if isinstance(ours, partial) and isinstance(getattr(ours.func, "__self__", None), LanesStep):
        del app.amqp.Consumer
