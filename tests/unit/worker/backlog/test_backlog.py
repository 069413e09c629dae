"""Who reads which queue when, what is told of it, and what is unknown."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery.worker.consumer.gossip import Gossip

from celery_budgets import Lane
from celery_budgets.model.priority import Broker
from celery_budgets.worker.backlog.backlog import PATIENCE, PERIOD, STALE, Backlog, Reading
from celery_budgets.worker.backlog.flow import Flow
from celery_budgets.worker.backlog.peers import EVENT, LaneShare, Peers
from celery_budgets.worker.backlog.reader import Reader


class Clock:
    """Seconds that a test sets: monotonic ones from 1000 on, and those of the wall."""

    now = 1000.0

    def __call__(self):
        return self.now

    def wall(self):
        return self.now + 1e9


class Worker:
    """One worker of a lane, without a broker."""

    def __init__(self, clock, name="a@h", broker=None, share=(0, 2)):
        self.flow = Flow(broker, clock)
        self.backlog = Backlog([Lane("busy", 2)], self.flow, broker, clock, clock.wall)
        self.peers = Peers(name, self.backlog, lambda lane: LaneShare(*share), clock)
        self.reader = Reader(self.backlog, clock)
        self.name = name
        self.asked = []
        self.answer = {"busy": (7, clock.wall() - 3)}
        self.reader._queues = SimpleNamespace(read=self.read, rest=lambda: None)
        self.backlog.read_by(shows_messages=True)

    def read(self, queues):
        self.asked.append(list(queues))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def send(self, event, **fields):
        self.sent = {"type": event, "hostname": self.name, **fields}
        for other in self.others:
            other.peers.hear(self.sent)


@pytest.fixture
def clock():
    return Clock()


def fleet(clock, *names, share=(0, 2)):
    workers = [Worker(clock, name, share=share) for name in names]
    for worker in workers:
        worker.others = [other for other in workers if other is not worker]
    return workers


def step(clock, workers):
    """Let a second pass: each looks, and tells."""
    clock.now += 1
    for worker in workers:
        worker.reader.look()
        worker.peers.tell(worker)


def test_a_queue_is_read_once_per_period(clock):
    """Not at each look."""
    (worker,) = workers = fleet(clock, "a@h")
    for _ in range(60):
        step(clock, workers)
    assert len(worker.asked) == 60 / PERIOD
    facts = worker.backlog.of("busy")
    assert (facts.messages, facts.estimated, facts.trend) == (7, False, 0)
    assert facts.oldest == pytest.approx(3 + 60)


def test_one_of_several_reads_and_another_goes_on(clock):
    """All know the same."""
    workers = fleet(clock, "a@h", "b@h", "c@h")
    for _ in range(30):
        step(clock, workers)
    assert {worker.backlog.of("busy").messages for worker in workers} == {7}
    readings = sum(len(worker.asked) for worker in workers)
    assert readings <= 30 / PERIOD + len(workers)
    before = [len(worker.asked) for worker in workers]
    for _ in range(30):
        step(clock, workers)
    (reader,) = [w for w, n in zip(workers, before, strict=True) if len(w.asked) > n]
    workers.remove(reader)
    for worker in workers:
        worker.others = [other for other in workers if other is not worker]
    for _ in range(int(PERIOD + PATIENCE[1]) + 2):
        step(clock, workers)
        assert all(worker.backlog.of("busy").messages == 7 for worker in workers)


def test_what_is_old_is_unknown(clock):
    """And what was never read."""
    worker = Worker(clock)
    assert worker.backlog.of("busy").messages is None
    worker.backlog.note("busy", Reading(clock.now, 7))
    clock.now += STALE + 0.1
    facts = worker.backlog.of("busy")
    assert (facts.messages, facts.oldest, facts.trend) == (None, None, None)
    assert worker.peers.load_of("busy") is None


def test_a_failure_is_told_once(clock, caplog):
    """The figures are unknown at once."""
    caplog.set_level("INFO", "celery_budgets")
    (worker,) = workers = fleet(clock, "a@h")
    step(clock, workers)
    worker.answer = ConnectionError("away")
    for _ in range(20):
        step(clock, workers)
    assert worker.backlog.of("busy").messages is None
    assert len(worker.asked) == 1 + 20 / PERIOD
    worker.answer = {"busy": (0, None)}
    for _ in range(6):
        step(clock, workers)
    assert worker.backlog.of("busy").messages == 0
    told = [record.message.split()[0].rstrip(":") for record in caplog.records]
    assert told == ["budgets.backlog_unknown", "budgets.backlog_known"]


def test_the_trend_is_of_the_last_minute(clock):
    """120 messages in the first minute, then 60 more in another."""
    (worker,) = workers = fleet(clock, "a@h")
    for second in range(121):
        worker.answer = {"busy": (2 * second if second < 60 else 60 + second, None)}
        step(clock, workers)
    assert worker.backlog.of("busy").trend == pytest.approx(1.0, abs=0.2)


def test_on_rabbitmq_the_oldest_is_estimated(clock):
    """By what was started last; but it cannot be older than when the queue was empty."""
    worker = Worker(clock)
    worker.backlog.read_by(shows_messages=False)
    worker.backlog.note("busy", Reading(clock.now, 7))
    assert worker.backlog.of("busy").oldest is None
    worker.flow.started(message(clock.wall() - 30))
    facts = worker.backlog.of("busy")
    assert (facts.oldest, facts.estimated) == (30, True)
    clock.now += 5
    worker.backlog.note("busy", Reading(clock.now, 0))
    facts = worker.backlog.of("busy")
    assert (facts.oldest, facts.estimated) == (0, False)
    clock.now += 5
    worker.backlog.note("busy", Reading(clock.now, 7))
    assert worker.backlog.of("busy").oldest == 5


def message(published):
    return SimpleNamespace(
        lane=SimpleNamespace(name="busy"), delivery_info={},
        request_dict={"budgets_due_at": published},
    )  # fmt: skip


def test_with_priorities_on_rabbitmq_both_queues_count_and_the_oldest_is_unknown(clock):
    """A message of high priority that was started says nothing of the others."""
    worker = Worker(clock, broker=Broker.RABBITMQ)
    worker.backlog.read_by(shows_messages=False)
    worker.backlog.note("busy", Reading(clock.now, 7))
    assert worker.backlog.of("busy").messages is None
    worker.backlog.note("busy.low", Reading(clock.now, 5))
    worker.flow.started(message(clock.wall() - 30))
    assert (worker.backlog.of("busy").messages, worker.backlog.of("busy").oldest) == (12, None)


def test_the_load_is_over_all_workers(clock):
    """(2 + 2 + 7) calls for 4 slots; of one that is gone nothing after a while."""
    workers = fleet(clock, "a@h", "b@h", share=(2, 2))
    for _ in range(8):
        step(clock, workers)
    assert workers[0].peers.load_of("busy") == workers[1].peers.load_of("busy") == 11 / 4
    for _ in range(int(STALE) + 2):
        step(clock, workers[:1])
    assert workers[0].peers.load_of("busy") == 9 / 2
    workers[1].peers.leave(SimpleNamespace(hostname="a@h"))


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"hostname": "b@h"},
        {"hostname": "b@h", "lanes": {"busy": [1]}, "queues": {}},
        {"hostname": "b@h", "lanes": {}, "queues": {"busy": "7"}},
        {"hostname": "b@h", "lanes": [], "queues": {}},
        {"hostname": 3, "lanes": {}, "queues": {}},
    ],
)
def test_an_event_that_cannot_be_read_is_left_out(clock, event):
    """Of another version, or of anybody."""
    worker = Worker(clock)
    worker.peers.hear(event)
    assert worker.backlog.of("busy").messages is None


def test_gossip_hands_over_what_others_tell(clock):
    """By a type of event that Celery does not know."""
    worker = Worker(clock)
    gossip = SimpleNamespace(event_handlers={}, on=SimpleNamespace(node_leave=set()))
    worker.peers.listen(gossip)
    worker.peers.listen(gossip)  # again after a reconnect
    assert len(gossip.event_handlers) == len(gossip.on.node_leave) == 1
    told = {"hostname": "b@h", "lanes": {"busy": [1, 2]}, "queues": {"busy": [7, None, 0.5]}}
    message = SimpleNamespace(
        delivery_info={"routing_key": EVENT.replace("-", ".")}, payload=told, headers={},
    )  # fmt: skip
    Gossip.on_message(gossip, None, message)
    assert worker.backlog.of("busy").messages == 7
