"""Calls that wait aside, in any order of events: none is lost, and none runs beyond its limits.

The broker is a list, and so is each worker: what is tried are the scripts, with real Redis.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from celery_budgets.model.limit import Demand, Limit
from celery_budgets.shared_state.answers import Aside, Ask, Release
from celery_budgets.shared_state.limit_store import LimitStore
from tests.unit.shared_state.model_checks import CLOCK, SETTINGS, expect_a_fault, plant

LENGTH = 60
KEYED = {
    "one": Limit("one", 1, key="key"),
    "paced": Limit("paced", 2, rate="1/s", burst=1, key="key"),
}
SHARED = Limit("shared", 2)
WORKERS = (0, 1)
KINDS = st.sampled_from([(name, key) for name in KEYED for key in "ab"])


@dataclass(eq=False)
class Message:
    """A message of one call, wherever it is; *since* is its header."""

    name: str
    demands: list[Demand]
    since: int = 0
    holder: str = ""


@dataclass
class Worker:
    """What one worker has in hand."""

    store: LimitStore
    held: list[Message] = field(default_factory=list)
    running: list[Message] = field(default_factory=list)
    #: Sent back to the queue, and Redis has not been told.
    sent: list[list[Aside]] = field(default_factory=list)


class Machine(RuleBasedStateMachine):
    """Two workers, which receive, ask, put aside, send back, end, crash and come again."""

    client: Redis

    def __init__(self):
        super().__init__()
        self.client.flushdb()
        self.numbers = itertools.count(1)
        self.workers = [
            Worker(LimitStore(self.client, length=LENGTH, clock=CLOCK)) for _ in WORKERS
        ]
        self.queue: list[Message] = []
        self.demands: dict[str, list[Demand]] = {}
        self.runs: dict[str, int] = {}
        self.crashed = False
        self.now = 0
        for worker in self.workers:
            worker.store.send_back(3)
        self.pass_time(1)

    @rule(kind=KINDS, shared=st.booleans())
    def send(self, kind, shared):
        name, key = kind
        name, demands = f"{next(self.numbers)}", [Demand(KEYED[name], key)]
        self.demands[name] = demands + ([Demand(SHARED)] if shared else [])
        self.queue.append(Message(name, self.demands[name]))
        self.runs[name] = 0

    @rule(which=st.sampled_from(WORKERS))
    def receive(self, which):
        if self.queue:
            message = self.queue.pop(0)
            message.holder = f"w{which}:{next(self.numbers)}"
            self.workers[which].held.append(message)
            self.ask(which, message)

    @rule(which=st.sampled_from(WORKERS), place=st.integers(0, 5))
    def ask_again(self, which, place):
        held = self.workers[which].held
        if held:
            self.ask(which, held[place % len(held)])

    def ask(self, which, message):
        worker = self.workers[which]
        ask = Ask(message.holder, message.demands, message.since, message.name)
        (answer,) = worker.store.exchange([], [ask])
        if answer.granted:
            worker.running.append(message)
        elif answer.aside:
            text = f"{message.name} {answer.since}".encode()
            worker.store.put_aside([(ask, answer, text)])
        else:
            message.since = answer.since
            return
        worker.held.remove(message)

    @rule(which=st.sampled_from(WORKERS), place=st.integers(0, 5))
    def end(self, which, place):
        worker = self.workers[which]
        if worker.running:
            message = worker.running.pop(place % len(worker.running))
            self.runs[message.name] += 1
            worker.store.exchange([Release(message.holder, message.demands)], [])

    @rule(which=st.sampled_from(WORKERS))
    def send_back(self, which):
        """To the queue; that Redis is told so is an event of its own."""
        worker = self.workers[which]
        if taken := worker.store.taken_over():
            worker.sent.append(taken)
            for aside in taken:
                name, since = aside.message.split()
                self.queue.append(Message(name.decode(), self.demands[name.decode()], int(since)))

    @rule(which=st.sampled_from(WORKERS))
    def tell_of_sent(self, which):
        worker = self.workers[which]
        if worker.sent:
            worker.store.sent(worker.sent.pop(0))

    @rule(which=st.sampled_from(WORKERS))
    def poll(self, which):
        while self.workers[which].store.poll(KEYED) == 0.0:
            pass

    @rule(which=st.sampled_from(WORKERS))
    def crash(self, which):
        """The broker has all again that it had in hand; Redis learns of nothing."""
        worker = self.workers[which]
        self.crashed = True
        self.queue[:0] = worker.running + worker.held
        for message in worker.running + worker.held:
            message.since = 0  # as it was sent
        worker.held, worker.running, worker.sent = [], [], []
        worker.store.taken_over()

    @rule(seconds=st.sampled_from([0.5, 1, 6, 20]))
    def pass_time(self, seconds):
        self.now += round(seconds * 1_000_000)
        self.client.set("clock", self.now)
        for worker in self.workers:
            held = [Release(message.holder, message.demands) for message in worker.running]
            assert all(worker.store.renew(held))

    @invariant()
    def nobody_is_too_many(self):
        demands = [demand for w in self.workers for m in w.running for demand in m.demands]
        for demand in demands:
            assert demands.count(demand) <= demand.limit.concurrency

    def teardown(self):
        """Everything ends that was sent, soon after nothing crashes any more."""
        for _ in range(60 + 4 * len(self.runs)):
            if all(self.runs.values()):
                break
            self.pass_time(1)
            for which in WORKERS:
                self.poll(which)
                self.send_back(which)
                self.tell_of_sent(which)
                for _ in range(len(self.queue)):
                    self.receive(which)
                for message in list(self.workers[which].held):
                    self.ask(which, message)
                while self.workers[which].running:
                    self.end(which, 0)
                self.nobody_is_too_many()
        wrong = {name: count for name, count in self.runs.items() if count != 1}
        assert not wrong if not self.crashed else all(self.runs.values()), wrong


@pytest.fixture
def machine(redis_url):
    with Redis.from_url(redis_url) as client:
        yield type("OneMachine", (Machine,), {"client": client})


def test_no_call_is_lost_aside_and_none_runs_beyond_its_limits(machine):
    run_state_machine_as_test(machine, settings=SETTINGS)


@pytest.mark.parametrize(
    ("script", "right", "wrong"),
    [
        ("PUT_ASIDE", "redis.call('HSET', asides, ARGV[6], message)", ""),
        ("ACQUIRE", "room(demand) < demand.takes then", "room(demand) < 0 then"),
    ],
    ids=["keeps no message", "counts wrongly"],
)
def test_a_planted_fault_is_found(machine, monkeypatch, script, right, wrong):
    plant(monkeypatch, script, right, wrong)
    expect_a_fault(machine)
