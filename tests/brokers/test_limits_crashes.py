"""Limits over the fleet whatever happens to workers and to the Redis that keeps the limits.

By entries that the bodies write to Redis; the benchmark ``crashes`` does the same with more calls.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.brokers.limited_app import BURST, MOST, MOST_OF_TENANT, RATE
from tests.brokers.rough_fleet import LEASE, RoughFleet
from tests.support.servers import Server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

APP = "tests.brokers.limited_app"


@pytest.fixture
def limits(tmp_path):
    """A server of this test alone, which keeps on disk what it has answered to."""
    server = Server(tmp_path, "--appendonly", "yes", "--save", "")
    yield server
    server.end()


@pytest.fixture
def fleet(worker, load_app, limits, servers, broker_url):
    """Four workers, on each broker in turn."""
    app = load_app(APP, LIMITS_URL=limits.url)
    return RoughFleet(worker, app.app, app.redis(), limits)


def test_no_place_too_many_whatever_happens(fleet):
    """Workers and processes are killed and stand still, clocks differ, Redis is killed."""
    calls = 800
    fleet.send(calls)
    happenings = [
        *[fleet.kill_worker] * 2, *[fleet.kill_process] * 4, fleet.stop_worker, fleet.stop_group,
        fleet.restart_limits,
    ]  # fmt: skip
    fleet.live_through(happenings, calls)
    assert fleet.wait_until_free() <= LEASE
    report = fleet.report()
    print(f"{report.bodies - calls} bodies more than calls, {report.most_within(1)} within 1 s")
    assert report.most["api"] == MOST, "there was something to hold"
    assert report.done == {str(number) for number in range(calls)}
    assert report.most["api"] <= MOST, fleet.tail()
    assert report.most_of_a_tenant <= MOST_OF_TENANT, fleet.tail()
    # Those that begin late, because their worker stood still, are few.
    assert report.most_within(1) <= RATE + BURST


def test_a_rolling_restart_of_all_workers(fleet):
    """Never more than the limits, and no pause of a lease: who stops gives back what it has."""
    calls = 600
    fleet.send(calls)
    fleet.live_through([fleet.replace_worker] * 4, calls)
    report = fleet.report()
    print(f"longest pause {report.longest_pause():.2f} s")
    assert report.done == {str(number) for number in range(calls)}
    assert report.bodies == calls
    assert report.most["api"] <= MOST
    assert report.most_of_a_tenant <= MOST_OF_TENANT
    assert report.longest_pause() < LEASE


def test_who_stands_still_for_longer_than_a_lease_has_lost_its_places(fleet):
    """Bound: so many bodies too many as it had, until it goes on; then it says so and ends them."""
    fleet.send_plain(3 * MOST, seconds=120)
    wait_until(lambda: fleet.bodies() == MOST, "all places are taken", timeout=60)
    victim = max(fleet.running, key=lambda each: len(fleet.bodies_of(each)))
    theirs = fleet.bodies_of(victim)
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: fleet.bodies() == MOST + len(theirs), "others begin", timeout=4 * LEASE)
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    victim.wait_for_log("budgets.lease_lost", timeout=LEASE)
    wait_until(lambda: fleet.bodies() <= MOST, "they are ended", timeout=20)
    assert fleet.report().most["api"] <= MOST + len(theirs)
    for each in fleet.running:
        each.kill()
