"""The worker's timers on prefork: Celery's own, corrected by what the pool process knows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_budgets.process.recorder import Flight, Reason
from celery_budgets.worker import deadlines as deadlines_module
from celery_budgets.worker.deadlines import (
    BEGIN_POLL,
    NUDGES,
    RESULT_POLL,
    RESULT_SECONDS,
    Deadlines,
)
from celery_budgets.worker.request import BudgetedRequest

JOB, PID = 7, 4711


class FakeHub:
    """Timers that fire when the test says so."""

    def __init__(self):
        self.timers = []

    def call_later(self, seconds, callback, *args):
        timer = SimpleNamespace(seconds=seconds, fire=lambda: callback(*args))
        self.timers.append(timer)
        return timer

    def delays(self):
        return [timer.seconds for timer in self.timers]


class FakePool:
    """The parts of an AsynPool that are touched, and what was asked of them."""

    def __init__(self):
        self.done = []
        self._cache = {JOB: job(PID)}
        self._tref_for_id = {}
        self._processes = 2
        self._pool = [process(1), process(2)]

    def _on_soft_timeout(self, job, soft, hard, hub):
        self.done.append(("soft", job, soft, hard))

    def _on_hard_timeout(self, job):
        self.done.append(("hard", job))

    def _event_process_exit(self, hub, process):
        self.done.append(("exit", process.pid))

    def maintain_pool(self):
        self.done.append("maintain")


class FakeFlights:
    def __init__(self):
        self.flight = None
        self.recorded = [PID]
        self.forgotten = []

    def pids(self):
        return self.recorded

    def forget(self, pid):
        self.forgotten.append(pid)

    def read(self, pid, task_id):
        assert (pid, task_id) == (PID, "some-id")
        return self.flight


def job(pid):
    return SimpleNamespace(
        _worker_pid=pid,
        correlation_id="some-id",
        _timeout_callback=None,
        _time_accepted=1000.0,
    )


def process(pid, alive=True):
    return SimpleNamespace(pid=pid, _is_alive=lambda: alive)


def flight(soft=10.0, hard=15.0, *, ended=False):
    return Flight(
        b"some-id", ended, Reason.NONE, False, 0.0, 1000 + soft, 1000 + hard, 0.0, 0, 0, 0, b"", b""
    )


@pytest.fixture
def bench(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(deadlines_module, "monotonic", lambda: clock.now)
    pool, hub, flights = FakePool(), FakeHub(), FakeFlights()
    Deadlines(pool, hub, flights).attach()
    return SimpleNamespace(clock=clock, pool=pool, hub=hub, flights=flights)


def soft_timer_fires(bench):
    bench.pool._on_soft_timeout(JOB, 10.0, 15.0, bench.hub)


def hard_timer_fires(bench):
    bench.pool._on_hard_timeout(JOB)


@pytest.mark.parametrize("known", [True, False])
def test_a_call_that_is_due_is_left_to_celery(bench, known):
    """Also a plain task, of which there is no record."""
    bench.flights.flight = flight() if known else None
    bench.clock.now += 10
    soft_timer_fires(bench)
    assert bench.pool.done == [("soft", JOB, 10.0, 15.0)]
    assert bench.hub.timers == []
    bench.clock.now += 5
    hard_timer_fires(bench)
    assert bench.pool.done[1:] == [("hard", JOB)]


def test_an_extended_call_gets_a_new_soft_timer(bench):
    """Armed for what is left by its own clock, and findable by Celery to be cancelled."""
    bench.flights.flight = flight(soft=14.0)
    bench.clock.now += 10
    soft_timer_fires(bench)
    assert bench.pool.done == []
    assert bench.hub.delays() == [4.0]  # 14 - 10
    assert bench.pool._tref_for_id[JOB] is bench.hub.timers[0]
    bench.clock.now += 4
    bench.hub.timers[0].fire()
    assert bench.pool.done == [("soft", JOB, 10.0, 15.0)]


def test_an_extended_call_gets_a_new_hard_timer(bench):
    """Again and again, while it is extended."""
    bench.flights.flight = flight(hard=19.0)
    bench.clock.now += 15
    hard_timer_fires(bench)
    bench.flights.flight = flight(hard=21.0)
    bench.clock.now += 4
    bench.hub.timers[0].fire()
    assert bench.pool.done == []
    assert bench.hub.delays() == [4.0, 2.0]  # 19 - 15, 21 - 19
    assert bench.pool._tref_for_id[JOB] is bench.hub.timers[1]
    bench.clock.now += 2
    bench.hub.timers[1].fire()
    assert bench.pool.done == [("hard", JOB)]


def test_a_call_whose_body_has_ended_is_not_killed(bench):
    """Its result is on the way: looked for four times a second, and killed after a minute."""
    bench.flights.flight = flight(ended=True)
    bench.clock.now += 15
    hard_timer_fires(bench)
    assert bench.pool.done == []
    assert bench.hub.delays() == [RESULT_POLL]
    bench.clock.now += RESULT_SECONDS
    bench.hub.timers[0].fire()
    assert bench.pool.done == [("hard", JOB)]


@pytest.mark.parametrize("gone", ["job", "pid"])
def test_a_job_that_is_done_or_was_never_accepted_is_left_to_celery(bench, gone):
    """Celery looks such a job up itself, and does nothing."""
    if gone == "job":
        bench.pool._cache.clear()
    else:
        bench.pool._cache[JOB]._worker_pid = None
    soft_timer_fires(bench)
    hard_timer_fires(bench)
    assert [what for what, *_ in bench.pool.done] == ["soft", "hard"]


@pytest.mark.parametrize("why", ["kill", "exit"])
def test_a_lost_slot_is_looked_for_at_once(bench, why):
    """After a kill and after any other end of a process, several times within a second."""
    if why == "kill":
        hard_timer_fires(bench)
    else:
        bench.pool._event_process_exit(bench.hub, bench.pool._pool[0])
    assert bench.hub.delays() == list(NUDGES)
    assert max(NUDGES) <= 1.0


@pytest.mark.parametrize(
    ("processes", "maintained"),
    [
        ([process(1), process(2)], False),  # all there: nothing to do
        ([process(1)], True),  # one is missing
        ([process(1), process(2, alive=False)], True),  # one is dead, and still in the list
        ([], True),
    ],
)
def test_the_pool_is_maintained_only_where_a_process_is_missing(bench, processes, maintained):
    """A look that finds all alive does not cost a pass over the pool."""
    bench.pool._pool[:] = processes
    bench.pool._event_process_exit(bench.hub, process(3))
    bench.pool.done.clear()
    bench.hub.timers[0].fire()
    assert bench.pool.done == (["maintain"] if maintained else [])


def test_a_call_that_was_accepted_and_has_not_begun_is_waited_for(bench):
    """Its process still imports: the signal would hit that, so only the hard limit is kept."""
    request = BudgetedRequest.__new__(BudgetedRequest)
    bench.pool._cache[JOB]._timeout_callback = request.on_timeout
    bench.clock.now += 10
    soft_timer_fires(bench)
    assert bench.pool.done == []
    assert bench.hub.delays() == [BEGIN_POLL]
    bench.clock.now += 5
    bench.hub.timers[0].fire()
    assert bench.pool.done == [("hard", JOB)]


def test_records_of_processes_that_are_gone_are_dropped(bench):
    """Not while the process lives, nor while the pool has still to settle its call."""
    bench.flights.recorded = [1, 2, 3, PID]
    bench.pool._event_process_exit(bench.hub, process(3))
    bench.hub.timers[0].fire()
    assert bench.flights.forgotten == [3]
    bench.pool._cache.clear()
    bench.hub.timers[1].fire()
    assert bench.flights.forgotten == [3, 3, PID]


def test_celery_still_has_what_is_stood_in_front_of():
    """The three methods, with these parameters: a new Celery that changes them fails here."""
    import inspect

    from celery.concurrency.asynpool import AsynPool

    def parameters(name):
        return list(inspect.signature(getattr(AsynPool, name)).parameters)

    assert parameters("_on_soft_timeout") == ["self", "job", "soft", "hard", "hub"]
    assert parameters("_on_hard_timeout") == ["self", "job"]
    assert parameters("_event_process_exit") == ["self", "hub", "proc"]
    source = inspect.getsource(AsynPool)
    for name in ("_on_soft_timeout", "_on_hard_timeout", "_event_process_exit", "_tref_for_id"):
        assert f"self.{name}" in source
