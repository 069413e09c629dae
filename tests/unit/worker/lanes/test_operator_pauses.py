"""Lanes that an operator has paused, beside the memory gate, without a broker."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery.worker import state

from celery_budgets.model.lanes import Lane, Lanes
from celery_budgets.worker.lanes.held_deliveries import HeldDeliveries
from celery_budgets.worker.lanes.lane_slots import WorkerSlots
from celery_budgets.worker.lanes.operator_pauses import OperatorPauses
from celery_budgets.worker.lanes.queue_pauses import QueuePauses
from celery_budgets.worker.memory.admission import Admission
from celery_budgets.worker.memory.gate import Decision, Gate, Gauge

LANES = Lanes([Lane("one", 1), Lane("two", 1)], global_concurrency=2)


class Queues(dict):
    """What is declared, and what is consumed."""

    def __init__(self, names):
        super().__init__({name: SimpleNamespace(queue_arguments=None) for name in names})
        self.consume_from = dict.fromkeys(names)


class Consumer:
    """Takes queues and calls, and notes them."""

    def __init__(self, transport):
        self.connection = SimpleNamespace(transport=SimpleNamespace(driver_type=transport))
        self.queues = Queues(LANES)
        self.app = SimpleNamespace(amqp=SimpleNamespace(queues=self.queues))
        self.controller = SimpleNamespace(semaphore=None)
        self.task_consumer = object()
        self.started = []

    def cancel_task_queue(self, name):
        del self.queues.consume_from[name]

    def add_task_queue(self, name):
        self.queues.consume_from[name] = None

    def call_soon(self, function, *arguments):
        function(*arguments)

    def on_task_request(self, request):
        self.started.append(request)


class Call:
    """A delivery; notes that it is handed back."""

    id, end = "id", None

    def __init__(self, lane, *, redelivered=False):
        self.lane = LANES[lane]
        self.delivery_info = {"routing_key": lane, "redelivered": redelivered}

    def hand_back(self):
        self.end = "handed back"


class Worker:
    """Two lanes of one slot, a closed gate if it is wanted, and an operator's pauses."""

    def __init__(self, transport="redis"):
        self.consumer = Consumer(transport)
        self.slots = WorkerSlots(LANES.values(), lambda: 2, lambda _: None, lambda: None)
        self.held = HeldDeliveries()
        self.queue_pauses = QueuePauses(self.consumer)
        self.gate = Gate([Gauge("max_worker_rss", 500, 400, lambda: 501)])
        self.admission = Admission(
            self.consumer, self.queue_pauses, self.gate, SimpleNamespace(), self.slots, self.held,
            fail=False, renew=lambda: None,
        )  # fmt: skip
        self.pauses = OperatorPauses(self.consumer, self.queue_pauses, LANES, self.slots, self.held)

    @property
    def consumed(self):
        return list(self.consumer.queues.consume_from)

    def close_gate(self):
        self.admission.act(self.gate.decide(self.gate.observe(), 0))

    def open_gate(self):
        self.gate.by = None
        self.admission.act(Decision.OPEN)

    def fill(self, lane, *, redelivered=False):
        """Return a call of *lane* that is kept, because another has its slot."""
        self.slots.take(Call(lane))
        kept = Call(lane, redelivered=redelivered)
        assert not self.slots.take(kept)
        return kept


def test_a_gate_that_opens_resumes_no_lane_of_an_operators():
    """Whichever of both came first, and whichever goes first."""
    worker = Worker()
    worker.pauses.pause(LANES["one"])
    assert worker.consumed == ["two"]
    worker.close_gate()
    assert worker.consumed == []
    worker.open_gate()
    assert worker.consumed == ["two"]
    worker.close_gate()
    worker.pauses.resume(LANES["one"])
    assert worker.consumed == []
    worker.open_gate()
    assert sorted(worker.consumed) == ["one", "two"]


def test_what_waits_for_a_slot_goes_back():
    """Of the paused lane alone, at once and whatever comes later."""
    worker = Worker()
    kept, other = worker.fill("one"), worker.fill("two")
    worker.pauses.pause(LANES["one"])
    assert (kept.end, other.end) == ("handed back", None)
    later = Call("one")
    assert worker.pauses.turn_away(later)
    assert later.end == "handed back"
    assert not worker.pauses.turn_away(Call("two"))


def test_what_must_not_go_back_is_kept_and_started_later():
    """A delivery that was one before already: RabbitMQ counts them."""
    worker = Worker("amqp")
    kept, held_by_gate = worker.fill("one", redelivered=True), Call("one", redelivered=True)
    worker.held.hold("memory", held_by_gate)
    worker.pauses.pause(LANES["one"])
    assert (kept.end, held_by_gate.end) == (None, None)
    assert len(worker.held) == 2
    assert worker.admission.running() == len(state.reserved_requests) - 2
    worker.pauses.resume(LANES["one"])
    assert worker.consumer.started == [kept, held_by_gate]
    assert len(worker.held) == 0


def test_a_lane_may_be_resumed_while_the_broker_is_told_of_its_pause():
    """py-amqp waits for the broker's word, and hands on what comes until then."""
    worker = Worker()
    tell, later = worker.consumer.cancel_task_queue, []

    def cancel(name):
        tell(name)
        worker.consumer.call_soon = lambda function, *args: later.append((function, args))
        worker.pauses.resume(LANES["one"])

    worker.consumer.cancel_task_queue = cancel
    worker.pauses.pause(LANES["one"])
    for function, args in later:
        function(*args)
    assert sorted(worker.consumed) == ["one", "two"]
    assert worker.queue_pauses.paused == {}


def test_a_lost_connection_takes_what_is_kept_and_leaves_the_pause():
    """The broker hands it out again, and it is turned away again."""
    worker = Worker("amqp")
    worker.fill("one", redelivered=True)
    worker.pauses.pause(LANES["one"])
    worker.held.lose_connection()
    assert len(worker.held) == 0
    assert worker.pauses.is_paused(LANES["one"])


@pytest.mark.parametrize("transport", ["redis", "amqp"])
def test_a_queue_that_somebody_adds_is_paused_again(transport):
    """Until then calls are kept: handed back they would come at once, again and again."""
    worker = Worker(transport)
    worker.pauses.pause(LANES["one"])
    worker.consumer.add_task_queue("one")
    call = Call("one")
    assert worker.pauses.turn_away(call)
    assert (call.end, len(worker.held)) == (None, 1)
    worker.pauses.look()
    assert worker.consumed == ["two"]
    assert (call.end, len(worker.held)) == ("handed back", 0)
