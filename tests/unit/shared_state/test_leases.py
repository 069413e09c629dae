"""Leases on a real server, and their keeper with a clock of the test's."""

from __future__ import annotations

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from celery_budgets.shared_state.leases import Lease, Leases, State
from celery_budgets.shared_state.renewal import LeaseRenewal
from tests.support.waiting import wait_until


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def client(redis_url):
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def leases(client):
    return Leases(client, length=60, retention=3600, prefix="p:")


def run_out(client, name="a"):
    """Let the lease end now, by the server's clock."""
    client.hset(f"p:{name}", "ends", 0)


def test_one_takes_it_and_the_other_finds_it_held(leases):
    """With what is left of it; the fence counts the leases of a name."""
    first, second = leases.take("a"), leases.take("a")
    assert (first.state, first.fence, first.lease.fence) == (State.FREE, 1, 1)
    assert (second.state, second.fence, second.lease) == (State.RUNNING, 1, None)
    assert 59 < second.left <= 60
    assert leases.take("b").state is State.FREE


def test_one_that_has_run_out_is_another_s(leases, client):
    """The fence goes up, and the first holder can do nothing to it any more."""
    first = leases.take("a").lease
    run_out(client)
    second = leases.take("a")
    assert (second.state, second.fence) == (State.FREE, 2)
    assert not leases.renew(first)
    assert not leases.settle(first, State.DONE, b"late")
    assert not leases.settle(first, State.FREE)
    assert leases.take("a").state is State.RUNNING
    assert leases.settle(second.lease, State.DONE, b"good")
    assert leases.take("a").value == b"good"


def test_renewing_starts_its_length_anew(leases, client):
    """Also where it had run out and nobody had taken it."""
    lease = leases.take("a").lease
    run_out(client)
    assert leases.renew(lease)
    assert 59 < leases.take("a").left <= 60


def test_work_that_is_done_is_found_until_it_is_forgotten(leases, client):
    """Its value comes with it; the record goes after the retention."""
    assert leases.settle(leases.take("a").lease, State.DONE, b"value")
    found = leases.take("a")
    assert (found.state, found.value, found.lease) == (State.DONE, b"value", None)
    assert 3590 < client.ttl("p:a") <= 3600
    client.delete("p:a")
    assert leases.take("a").state is State.FREE


def test_work_that_has_failed_is_found_by_those_who_waited_for_it(leases):
    """Whoever did not wait for that very lease takes the name."""
    lease = leases.take("a").lease
    waited = leases.take("a").fence
    assert leases.settle(lease, State.FAILED, b"why")
    assert leases.take("a", waited).value == b"why"
    again = leases.take("a")
    assert (again.state, again.fence) == (State.FREE, 2)
    assert leases.take("a", waited).state is State.RUNNING


def test_a_holder_settles_once(leases):
    """What is settled is nobody's."""
    lease = leases.take("a").lease
    assert leases.settle(lease, State.FREE)
    assert not leases.settle(lease, State.DONE, b"value")
    assert not leases.renew(lease)
    assert leases.take("a").fence == 2


def test_a_record_lives_as_long_as_its_lease(client):
    """Even where the end is to be forgotten at once."""
    leases = Leases(client, length=60, retention=0.001, prefix="p:")
    lease = leases.take("a").lease
    assert client.ttl("p:a") > 60
    leases.settle(lease, State.DONE)
    wait_until(lambda: not client.exists("p:a"), "it is forgotten")


class Renewals:
    """Leases whose server answers as the test says."""

    length = 30.0

    def __init__(self, clock, answer=True):
        self.clock, self.answer, self.asked = clock, answer, 0

    def renew(self, lease):
        self.asked += 1
        if self.answer is None:
            raise RedisConnectionError("away")
        if self.answer:
            lease.valid_until = self.clock() + self.length
        return self.answer


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keeper(clock):
    keeper = LeaseRenewal(clock)
    keeper._thread = object()  # the test ticks itself
    return keeper


def hold(keeper, clock, renewals, lost):
    lease = Lease("a", f"holder-{renewals}", 1, clock() + 30)
    keeper.hold(renewals, lease, lost.append)
    return lease


def test_a_lease_is_renewed_every_third_of_its_length(keeper, clock):
    """30 s: after 10 s, and not before."""
    renewals, lost = Renewals(clock), []
    lease = hold(keeper, clock, renewals, lost)
    assert keeper.tick() == pytest.approx(10)
    clock.now += 9.9
    keeper.tick()
    assert renewals.asked == 0
    clock.now += 0.2
    assert keeper.tick() == pytest.approx(10)
    assert (renewals.asked, lease.valid_until, lost) == (1, clock() + 30, [])
    keeper.let_go(lease)
    assert keeper.tick() is None


def test_a_holder_that_cannot_renew_is_told_in_time(keeper, clock):
    """30 s: with at least 5 s left it is told; before that it was tried every 2 s."""
    renewals, lost = Renewals(clock, answer=None), []
    lease = hold(keeper, clock, renewals, lost)
    while not lost:
        clock.now += keeper.tick() or 0
        assert clock() < lease.valid_until
    assert lost == [lease]
    assert lease.lost
    assert lease.valid_until - clock() >= 5
    assert renewals.asked >= 7  # 10, 12, ... 24 s
    assert keeper.tick() is None


def test_a_server_that_comes_back_in_time_is_enough(keeper, clock):
    """One that was away for half of the length."""
    renewals, lost = Renewals(clock, answer=None), []
    lease = hold(keeper, clock, renewals, lost)
    clock.now += 15
    keeper.tick()
    renewals.answer = True
    clock.now += 2.1
    keeper.tick()
    assert not lost
    assert lease.valid_until == clock() + 30


def test_a_lease_that_is_another_s_is_lost_at_once(keeper, clock):
    """Told once."""
    renewals, lost = Renewals(clock, answer=False), []
    lease = hold(keeper, clock, renewals, lost)
    clock.now += 10.1
    keeper.tick()
    keeper.tick()
    assert lost == [lease]


def test_a_lease_that_nobody_needs_any_more_is_left_to_run_out(keeper, clock):
    """Its holder was given up, and will not come back to let it go."""
    renewals, lost = Renewals(clock), []
    keeper.hold(renewals, Lease("a", "holder", 1, clock() + 30), lost.append, lambda: False)
    clock.now += 10.1
    assert keeper.tick() is None
    assert (renewals.asked, lost) == (0, [])


def test_a_server_that_is_away_is_asked_once_for_many(keeper, clock):
    """Eight time-outs in a row would outlast a lease."""
    lost = []
    many = [Renewals(clock, answer=None) for _ in range(8)]
    for renewals in many:
        hold(keeper, clock, renewals, lost)
    clock.now += 10.1
    keeper.tick()
    assert sum(renewals.asked for renewals in many) == 1
