"""The second line for memory: which pool process is killed, and which is not."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import psutil
import pytest

from celery_budgets import Budget
from celery_budgets.execution.call import Call
from celery_budgets.execution.flight.record import Reason, pack, unpack
from celery_budgets.model.budget import TimeLimits
from celery_budgets.worker.memory.pool_guard import PoolGuard
from tests.support.waiting import wait_until

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
        self.task_id = "call"
        self.condemned = []

    def current(self, pid):
        ended = self._ended.pop(0) if len(self._ended) > 1 else self._ended[0]
        return SimpleNamespace(is_of=self.task_id.__eq__, ended=ended)

    def condemn(self, pid, reason, rss):
        self.condemned.append((pid, reason, rss))


def request_of(task_id, pid, limit=LIMIT):
    lane = SimpleNamespace(name="lane")
    return SimpleNamespace(id=task_id, lane=lane, hard_rss=limit, worker_pid=pid)


def kill(process, flights, in_hand, rss=LIMIT + 1):
    roster = SimpleNamespace(in_hand=in_hand)
    PoolGuard(lambda: [process.pid], flights, roster, lambda pid: rss).look()


def look(process, flights, rss):
    kill(process, flights, {"call": request_of("call", process.pid)}, rss)


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


@pytest.mark.parametrize("task_id", ["call", "x" * 200, "ü" * 100, "x" * 127 + "ü"])
def test_a_call_with_any_id_is_found(process, task_id):
    """A record keeps 128 bytes of an id, which may be longer."""
    flights = Flights(False)
    written = unpack(pack(Call(task_id, "lane", Budget(), TimeLimits(10.0, 15.0))))
    flights.current = lambda pid: written
    kill(process, flights, {"": request_of(task_id, process.pid)})
    assert process.wait(10) == -9


def test_of_two_calls_with_one_id_that_in_the_process_counts(process):
    """Twins share their id: that in another process may take more, and this one may not."""
    flights = Flights(False)
    generous = request_of("call", process.pid + 1, LIMIT * 2)
    kill(process, flights, {"twin": generous, "": request_of("call", process.pid)})
    assert process.wait(10) == -9


def test_of_two_calls_with_one_id_that_in_another_process_does_not_count(process):
    """What is in this process may take as much as it does."""
    mine = request_of("call", process.pid, LIMIT * 2)
    kill(process, Flights(False), {"twin": request_of("call", process.pid + 1), "": mine})
    assert process.poll() is None
