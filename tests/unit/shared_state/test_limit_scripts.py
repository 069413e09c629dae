"""The scripts of limits against a plain reference: whatever comes in whatever order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from celery_budgets.model.limit import Demand, Limit
from celery_budgets.shared_state.answers import Release
from celery_budgets.shared_state.limit_store import LimitStore
from tests.unit.shared_state.model_checks import CLOCK, SETTINGS, expect_a_fault, plant
from tests.unit.shared_state.plain_limits import PlainLimit, PlainLimits

LENGTH = 60
LIMITS = {
    "one": Limit("one", 1),
    "few": Limit("few", 3),
    # An hour between calls: its name is not to expire while the test runs.
    "slow": Limit("slow", 2, rate="1/h", burst=2),
    "rate": Limit("rate", rate="2/h", burst=1),
}
WANTED = [
    [("one", 1)], [("few", 1)], [("few", 2)], [("few", 3)], [("slow", 1)], [("rate", 1)],
    [("one", 1), ("few", 1)], [("few", 1), ("one", 1)], [("few", 2), ("slow", 1), ("rate", 1)],
]  # fmt: skip
PROCESSES = ["p1", "p2", "p3"]
_runs = itertools.count()


def plain():
    return {
        name: PlainLimit(
            limit.concurrency or 0, limit.rate.interval * 1e6 if limit.rate else 0, limit.burst
        )
        for name, limit in LIMITS.items()
    }


class Machine(RuleBasedStateMachine):
    """Calls of three processes, which ask, are told, renew, end, crash and stand still."""

    calls = Bundle("calls")
    client: Redis

    def __init__(self):
        super().__init__()
        self.client.flushdb()
        self.store = LimitStore(self.client, length=LENGTH, prefix=f"{next(_runs)}:", clock=CLOCK)
        self.plain = PlainLimits(plain(), LENGTH * 1_000_000)
        self.ears = {process: self.client.pubsub() for process in PROCESSES}
        self.granted: set[str] = set()
        self.since: dict[str, int] = {}
        self.brake_of: dict[str, str | None] = {}
        self.numbers = itertools.count()
        self.pass_time(1)
        for process in PROCESSES:
            self.listen(process)

    def teardown(self):
        for ear in self.ears.values():
            ear.close()

    @rule(process=st.sampled_from(PROCESSES))
    def listen(self, process):
        if process not in self.plain.listening:
            self.ears[process].subscribe(self.store.channels + process)
            assert self.ears[process].get_message(timeout=5)["type"] == "subscribe"
            self.plain.listening.add(process)

    @rule(process=st.sampled_from(PROCESSES))
    def crash(self, process):
        """It hears nothing any more; what it has, it has until its leases end."""
        self.plain.listening.discard(process)
        self.plain.told = [name for name in self.plain.told if not name.startswith(process)]
        self.ears[process].close()
        self.ears[process] = self.client.pubsub()

    @rule(target=calls, process=st.sampled_from(PROCESSES), wanted=st.sampled_from(WANTED))
    def ask(self, process, wanted):
        call = f"{process}:{next(self.numbers)}", tuple(wanted)
        self.acquire(call)
        return call

    @rule(call=calls)
    def ask_again(self, call):
        """When it was told, when its reply was lost, or for no reason."""
        self.acquire(call)

    def acquire(self, call):
        holder, wanted = call
        since = self.since.get(holder, 0)
        answer = self.store.acquire(holder, demands_of(wanted), since)
        granted, refused, wait = self.plain.acquire(holder, wanted, since)
        assert answer.granted == granted
        if granted:
            self.granted.add(holder)
            return
        self.since[holder] = answer.since
        assert answer.refused.limit.name == wanted[refused - 1][0]
        assert answer.wait == pytest.approx(wait / 1e6, abs=0.001)

    @rule(calls=st.lists(calls, max_size=4, unique=True))
    def renew(self, calls):
        self.start_anew(calls)

    @rule(call=calls, process=st.sampled_from(PROCESSES))
    def stand_still(self, call, process):
        """For longer than a lease: another asks for the same before it renews what it had."""
        self.pass_time(LENGTH + 1)
        self.acquire((f"{process}:{next(self.numbers)}", call[1]))
        self.start_anew([call])

    def start_anew(self, calls):
        calls = [call for call in calls if call[0] in self.granted]
        renewed = self.store.renew(
            [Release(holder, demands_of(wanted)) for holder, wanted in calls]
        )
        expected = [self.plain.renew(*call) for call in calls]
        assert renewed == expected
        self.granted -= {
            holder for (holder, _), kept in zip(calls, renewed, strict=True) if not kept
        }

    @rule(
        name=st.sampled_from(sorted(LIMITS)),
        key=st.sampled_from(["", None]),
        seconds=st.sampled_from([1, 30]),
    )
    def throttle(self, name, key, seconds):
        """Whoever is at the other end has had enough; of the only key, or of all."""
        if (brake := self.plain.limits[name]).opens is None:
            self.brake_of[name] = key
        # A brake of the one kind after one of the other: the reference has one.
        self.store.throttle(name, self.brake_of[name], seconds)
        self.plain.throttle(name, seconds)
        assert brake.opens is not None

    @rule(call=consumes(calls))
    def release(self, call):
        self.granted.discard(call[0])
        self.store.release(call[0], demands_of(call[1]))
        self.plain.release(*call)

    @rule(seconds=st.sampled_from([0.4, 1.1, 20, LENGTH + 1, 1800, 3600]))
    def pass_time(self, seconds):
        self.plain.now += round(seconds * 1_000_000)
        self.client.set("clock", self.plain.now)

    @precondition(lambda self: self.plain.told)
    @rule(target=calls)
    def hear(self):
        """Each is told what it is offered, in the order of the offers."""
        told, self.plain.told = self.plain.told, []
        for process in self.plain.listening:
            heard = []
            while (message := self.ears[process].get_message(timeout=0)) is not None:
                heard.append(message["data"].decode())
            own = [holder for holder in told if holder.startswith(f"{process}:")]
            assert heard == own
        return multiple()

    @invariant()
    def nobody_is_too_many(self):
        """By the members that Redis has, not by what either of the two says."""
        for name, limit in LIMITS.items():
            if limit.concurrency is not None:
                held = self.store._name("held", Demand(limit))
                live = self.client.zcount(held, f"({self.plain.now}", "+inf")
                assert live <= limit.concurrency, name

    @invariant()
    def both_hold_the_same(self):
        for name, limit in self.plain.limits.items():
            if not limit.most:
                continue
            members = self.client.zrange(self.store._name("held", Demand(LIMITS[name])), 0, -1)
            assert sorted(member.decode() for member in members) == sorted(
                f"{holder}{'?' if offered else '#'}{place}"
                for holder, (weight, _, offered) in limit.held.items()
                for place in range(1, weight + 1)
            )
            line = self.client.zrange(self.store._name("line", Demand(LIMITS[name])), 0, -1)
            in_line = {f"{holder} {weight}" for holder, weight in limit.line}
            assert {waits.decode() for waits in line} == in_line


def demands_of(wanted):
    return [Demand(LIMITS[name], "", weight) for name, weight in wanted]


@pytest.fixture
def machine(redis_url):
    with Redis.from_url(redis_url) as client:
        yield type("OneMachine", (Machine,), {"client": client})


def test_the_scripts_do_what_the_reference_does(machine):
    """Ask, renew, end, crash, stand still, and time that passes, in every order."""
    run_state_machine_as_test(machine, settings=SETTINGS)


def test_who_has_lost_a_part_is_not_refused_what_it_has(machine):
    """A call that stood still, asks anew, and still holds the last place of a limit."""
    steps = machine()
    late = "p1:late", (("few", 1), ("one", 1))
    steps.acquire(late)
    steps.pass_time(LENGTH + 1)
    steps.acquire(("p2:one", (("one", 1),)))
    steps.start_anew([late])
    steps.acquire(("p3:few", (("few", 2),)))
    steps.acquire(late)
    assert "p1:late" not in steps.granted
    steps.both_hold_the_same()


@pytest.mark.parametrize(
    ("script", "right", "wrong"),
    [
        ("ACQUIRE", "room(demand) < demand.takes then", "room(demand) < 0 then"),
        ("ACQUIRE", "if refused == 0 then", "if refused < 2 then"),
        ("RELEASE", "redis.call('ZREM', demand.line, demand.waits)", ""),
        ("RENEW", "renewed[place] = 0", "renewed[place] = 1"),
        ("ACQUIRE", "who ~= holder and now < ends", "false"),
    ],
    ids=[
        "counts wrongly", "takes a part", "leaves no line", "renews what another has",
        "lets all try what was closed",
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(machine, monkeypatch, script, right, wrong):
    """In one of the scripts: the check can fail."""
    plant(monkeypatch, script, right, wrong)
    expect_a_fault(machine)
