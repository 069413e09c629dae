"""The second line for memory: which pool process is killed, and which is not."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import psutil
import pytest

from celery_budgets.process.flight import Reason
from celery_budgets.worker.pool_memory import PoolMemory
from tests.support import wait_until

LIMIT = 1000


@pytest.fixture
def process():
    """A process that sleeps, in place of one of a pool."""
    sleeping = subprocess.Popen(["sleep", "60"])
    yield sleeping
    sleeping.kill()
    sleeping.wait()


class Flights:
    """Tells of one call what *ended* says, one answer after the other."""

    def __init__(self, *ended):
        self._ended = list(ended)
        self.condemned = []

    def current(self, pid):
        ended = self._ended.pop(0) if len(self._ended) > 1 else self._ended[0]
        return SimpleNamespace(task_id="call", ended=ended)

    def condemn(self, pid, reason, rss):
        self.condemned.append((pid, reason, rss))


def look(process, flights, rss):
    request = SimpleNamespace(id="call", lane=SimpleNamespace(name="lane"), hard_rss=LIMIT)
    roster = SimpleNamespace(in_hand={"call": request})
    PoolMemory(lambda: [process.pid], flights, roster, lambda pid: rss).look()


def test_a_call_above_its_hard_limit_is_killed(process):
    """With the reason written down first, for the one who tells how the call ended."""
    flights = Flights(False)
    look(process, flights, LIMIT + 1)
    assert process.wait(10) == -9
    assert flights.condemned == [(process.pid, Reason.MEMORY_LIMIT, LIMIT + 1)]


@pytest.mark.parametrize("rss", [LIMIT, None])
def test_at_the_limit_or_gone_nothing_happens(process, rss):
    look(process, Flights(False), rss)
    assert process.poll() is None


def test_a_body_that_has_ended_is_left_alone(process):
    """Its result is on the way, however large the process is."""
    look(process, Flights(True), LIMIT + 1)
    assert process.poll() is None


def test_a_body_that_ends_at_the_last_moment_is_left_alone(process):
    """Between the look and the kill: the process is stopped, looked at again, and goes on."""
    flights = Flights(False, True)
    look(process, flights, LIMIT + 1)
    assert not flights.condemned
    status = psutil.Process(process.pid).status
    wait_until(lambda: status() == psutil.STATUS_SLEEPING, "it goes on")
