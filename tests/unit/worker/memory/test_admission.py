"""What becomes of a call that is not admitted, without a broker."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import pytest

from celery_budgets.worker.lanes.held_deliveries import HeldDeliveries
from celery_budgets.worker.lanes.queue_pauses import QueuePauses
from celery_budgets.worker.memory.admission import Admission
from celery_budgets.worker.memory.gate import Decision, Gate, Gauge

CLOSED = 501


class Consumer:
    """Notes what is done to it."""

    def __init__(self, transport="redis", queues=None):
        self.connection = SimpleNamespace(transport=SimpleNamespace(driver_type=transport))
        self.consumed = {"lane": None, "other": None}
        queues = queues or {"lane": None}
        self.app = SimpleNamespace(amqp=SimpleNamespace(queues=Queues(queues, self.consumed)))
        self.controller = SimpleNamespace(semaphore=SimpleNamespace(_waiting=deque()))
        self.task_consumer = object()
        self.started, self.soon, self.admissions = [], [], []

    def cancel_task_queue(self, name):
        del self.consumed[name]

    def add_task_queue(self, name):
        self.consumed[name] = None

    def on_task_request(self, request):
        self.started.append(request)

    def call_soon(self, function):
        self.soon.append(function)


class Queues(dict):
    def __init__(self, queues, consumed):
        super().__init__(queues)
        self.consume_from = consumed


class Request:
    """Notes what becomes of it."""

    def __init__(self, *, redelivered=False):
        self.id, self.lane = "id", SimpleNamespace(name="lane")
        self.delivery_info = {"routing_key": "lane", "redelivered": redelivered}
        self.end, self.slot = None, True

    def hand_back(self):
        self.end = "handed back"

    def end_rejected(self, exc):
        self.end = exc.args


class Roster:
    def __init__(self):
        self.reasons = []

    def rejected(self, request, reason):
        self.reasons.append(reason)


class Slots:
    """Those of one lane; nothing waits for one."""

    def release(self, request):
        request.slot = False

    def give_up_held(self, lane):
        return []


@pytest.fixture
def join():
    """Join an admission to a consumer; its gate is closed."""

    def joined(consumer, *, fail=False):
        gate = Gate([Gauge("max_worker_rss", 500, 400, lambda: CLOSED)])
        renewed = []
        admission = Admission(
            consumer,
            QueuePauses(consumer),
            gate,
            Roster(),
            Slots(),
            HeldDeliveries(),
            fail=fail,
            renew=lambda: renewed.append(True),
        )
        admission.renewed = renewed
        consumer.admissions.append(admission)
        admission.act(gate.decide(gate.observe(), 0))
        return admission

    return joined


def test_closed_means_no_queue_is_consumed(join):
    """And open means all of them again; a queue that was added meanwhile is paused too."""
    consumer = Consumer()
    admission = join(consumer)
    assert not consumer.consumed
    consumer.consumed["added"] = None
    admission.act(Decision.KEEP)
    assert not consumer.consumed
    admission.gate.by = None
    admission.act(Decision.OPEN)
    assert set(consumer.consumed) == {"lane", "other", "added"}


def test_a_connection_lost_in_the_middle_of_a_pause_loses_no_queue(join):
    """Celery deselects the queue before it tells the broker, which may be gone by then."""

    class Losing(Consumer):
        lost = True

        def cancel_task_queue(self, name):
            super().cancel_task_queue(name)
            if self.lost:
                self.lost = False
                raise ConnectionResetError

    consumer = Losing()
    with pytest.raises(ConnectionResetError):
        join(consumer)
    admission = consumer.admissions[0]
    admission.act(Decision.KEEP)
    assert not consumer.consumed
    admission.gate.by = None
    admission.act(Decision.OPEN)
    assert set(consumer.consumed) == {"lane", "other"}


@pytest.mark.parametrize(
    ("transport", "arguments", "redelivered", "end"),
    [
        ("redis", {}, False, "handed back"),
        ("redis", {}, True, "handed back"),
        ("amqp", {}, False, "handed back"),
        ("amqp", {}, True, None),  # once is enough: the broker may count
        ("amqp", {"x-queue-type": "quorum"}, False, None),
    ],
)
def test_what_arrives_while_closed(join, transport, arguments, redelivered, end):
    """It goes back to the broker, or is held where that could use up its deliveries."""
    queue = SimpleNamespace(queue_arguments=arguments)
    consumer = Consumer(transport, {"lane": queue})
    admission, request = join(consumer), Request(redelivered=redelivered)
    assert not admission.admit(request)
    assert request.end == end
    assert len(admission._held) == (0 if end else 1)
    admission.gate.by = None
    admission.act(Decision.OPEN)
    assert consumer.started == ([] if end else [request])
    assert admission.admit(request)


def test_rejection_by_failure_consumes_on(join):
    """The caller gets the reason and the lane; the queues stay open for that."""
    consumer = Consumer()
    admission, request = join(consumer, fail=True), Request()
    assert set(consumer.consumed) == {"lane", "other"}
    assert not admission.admit(request)
    assert request.end == ("max_worker_rss", "lane")
    assert admission._roster.reasons == ["max_worker_rss"]


def test_what_waits_for_a_slot_goes_back(join):
    """Early acknowledged calls are prefetched; other waiters of the semaphore are not ours."""
    consumer = Consumer()
    mine, foreign = Request(), object()
    waiting = consumer.controller.semaphore._waiting
    waiting.extend([(print, (foreign,), {}), (print, (mine,), {})])
    join(consumer)
    assert mine.end == "handed back"
    assert not mine.slot, "it had the slot of its lane already"
    assert list(waiting) == [(print, (foreign,), {})]


def test_one_call_is_let_through(join):
    """The next to arrive, or the first that is held; then the queues are paused again."""
    consumer = Consumer("amqp")
    admission = join(consumer)
    admission.act(Decision.LET_ONE)
    assert set(consumer.consumed) == {"lane", "other"}
    assert admission.admit(Request())
    (pause,) = consumer.soon
    pause()
    assert not consumer.consumed
    held = Request(redelivered=True)
    assert not admission.admit(held)
    admission.act(Decision.LET_ONE)
    assert consumer.started == [held]
    assert not consumer.consumed


def test_a_lost_connection_takes_what_is_held(join):
    """Its broker hands it out again; running it here as well would run it twice."""
    consumer = Consumer("amqp")
    admission = join(consumer)
    admission.admit(Request(redelivered=True))
    admission._held.lose_connection()
    admission.lose_connection()
    admission.gate.by = None
    admission.act(Decision.OPEN)
    assert not consumer.started


def test_memory_is_given_back_and_the_gate_stays_closed(join):
    """Renewing is the caller's; nothing is consumed meanwhile."""
    consumer = Consumer()
    admission = join(consumer)
    admission.act(Decision.RENEW)
    assert admission.renewed == [True]
    assert not consumer.consumed
