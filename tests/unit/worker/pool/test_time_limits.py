"""The worker's timer on prefork: Celery's limits, corrected by what the pool process knows."""

from __future__ import annotations

import inspect
from itertools import pairwise
from types import SimpleNamespace

import pytest
from billiard.pool import ApplyResult
from celery.concurrency.asynpool import AsynPool, ResultHandler
from kombu.asynchronous.timer import Timer

from celery_budgets.execution.flight.record import Flight, Reason
from celery_budgets.worker.pool import time_limits
from celery_budgets.worker.pool.time_limits import (
    BEGIN_POLL,
    LATE,
    LONGEST,
    NUDGES,
    RESULT_POLL,
    RESULT_SECONDS,
    TURN,
    TimeLimitTimer,
)
from celery_budgets.worker.request import BudgetedRequest

JOB, PID = 7, 4711
SOFT, HARD = 10.0, 15.0


class FakeHub:
    """Timers that fire when the test moves the clock."""

    def __init__(self, clock):
        self.clock = clock
        self.timers = []

    def call_later(self, seconds, callback, *args):
        timer = SimpleNamespace(
            at=self.clock.now + seconds, seconds=seconds, fire=lambda: callback(*args)
        )
        timer.cancel = lambda: timer in self.timers and self.timers.remove(timer)
        self.timers.append(timer)
        return timer

    def delays(self):
        return [timer.seconds for timer in self.timers]

    def turn(self):
        """Fire all that is due by the time that the first timer is, as kombu's hub does."""
        self.clock.now = max(self.clock.now, min(timer.at for timer in self.timers))
        for due in sorted(self.timers, key=lambda timer: timer.at):
            if due.at <= self.clock.now and due in self.timers:
                self.timers.remove(due)
                due.fire()

    def run_until(self, instant):
        """Fire what is due until then, each at its time."""
        while due := sorted((t for t in self.timers if t.at <= instant), key=lambda t: t.at):
            self.timers.remove(due[0])
            self.clock.now = max(self.clock.now, due[0].at)
            due[0].fire()
        self.clock.now = instant


class FakePool:
    """The parts of an AsynPool that are touched, and what was asked of them."""

    def __init__(self, clock):
        self.clock = clock
        self.done = []
        self.seconds_per_kill = 0.0
        self._cache = {}
        self._processes = 2
        self._pool = [process(1), process(2)]
        self._result_handler = SimpleNamespace()

    def on_soft_timeout(self, job):
        self.done.append(("soft", job._job))

    def on_hard_timeout(self, job):
        self.done.append(("hard", job._job))
        del self._cache[job._job]
        self.clock.now += self.seconds_per_kill

    def _event_process_exit(self, hub, process):
        self.done.append(("exit", process.pid))

    def _untrack_child_process(self, process, hub):
        self.done.append(("untracked", process.pid))

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


def process(pid, alive=True):
    return SimpleNamespace(pid=pid, _is_alive=lambda: alive)


def flight(soft=SOFT, hard=HARD, *, ended=False):
    return Flight(
        b"some-id", ended, Reason.NONE, False, 0.0, 1000 + soft, 1000 + hard, 0.0, 0, 0, 0, b"", b""
    )


class Bench:
    """A pool, its event loop and their clock."""

    def __init__(self, monkeypatch):
        self.clock = SimpleNamespace(now=1000.0)
        monkeypatch.setattr(time_limits, "monotonic", lambda: self.clock.now)
        self.pool, self.flights = FakePool(self.clock), FakeFlights()
        self.hub = FakeHub(self.clock)
        TimeLimitTimer(self.pool, self.hub, self.flights).attach()
        self.pool._create_timelimit_handlers(self.hub)
        self.hub.run_until(1000.0 + LATE)  # what runs already: nothing
        self.clock.now = 1000.0

    def accept(self, job=JOB, soft=SOFT, hard=HARD):
        """Have a process accept a job now, as billiard.pool.ApplyResult._ack does."""
        result = SimpleNamespace(
            _job=job, _worker_pid=PID, correlation_id="some-id", _timeout_callback=None,
            _time_accepted=self.clock.now, _soft_timeout=soft, _timeout=hard,
        )  # fmt: skip
        self.pool._cache[job] = result
        self.pool.on_timeout_set(result, soft, hard)
        return result

    def at(self, seconds):
        """Return what the pool was asked until *seconds* after the beginning, and forget it."""
        self.hub.run_until(1000.0 + seconds)
        done, self.pool.done = self.pool.done, []
        return done


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch)


@pytest.mark.parametrize("known", [True, False])
def test_a_call_that_is_due_is_left_to_celery(bench, known):
    """Also a plain task, of which there is no record."""
    bench.flights.flight = flight() if known else None
    bench.accept()
    assert bench.at(9.99) == []
    assert bench.at(10) == [("soft", JOB)]
    assert bench.at(14.99) == []
    assert bench.at(15) == [("hard", JOB)]
    assert bench.at(60) == []


@pytest.mark.parametrize(
    ("soft", "hard", "done"), [(None, 3.0, "hard"), (3.0, None, "soft"), (None, None, None)]
)
def test_a_plain_task_may_have_one_limit_or_none(bench, soft, hard, done):
    """As with Celery; a soft one comes once."""
    bench.accept(soft=soft, hard=hard)
    assert bench.at(2.9) == []
    assert bench.at(10) == ([(done, JOB)] if done else [])


def test_one_timer_serves_all_calls(bench):
    """A thousand calls that end in time leave no more than one timer behind."""
    for job in range(1000):
        bench.accept(job)
        del bench.pool._cache[job]
        assert len(bench.hub.timers) == 1
    assert bench.at(60) == []
    assert bench.hub.timers == []


def test_kombu_keeps_cancelled_timers():
    """The reason for one timer, and for LONGEST; when it fails, kombu has mended it."""
    timer = Timer()
    timer.call_after(300, print).cancel()
    assert len(timer) == 1


def test_a_later_call_with_a_shorter_limit_is_on_time(bench):
    """The timer is armed anew for it, and the longer one is not forgotten."""
    bench.accept(1, soft=0.7, hard=0.8)
    bench.accept(2, soft=0.2, hard=0.3)
    assert bench.at(0.19) == []
    assert bench.at(0.2) == [("soft", 2)]
    assert bench.at(0.3) == [("hard", 2)]
    assert bench.at(0.7) == [("soft", 1)]
    assert bench.at(0.8) == [("hard", 1)]


def test_no_timer_is_armed_for_long(bench):
    """Else cancelled ones would gather in the event loop."""
    bench.accept(soft=300.0, hard=450.0)
    for instant in range(1, 100):
        assert max(bench.hub.delays()) <= LONGEST
        assert len(bench.hub.timers) == 1
        bench.at(instant)


def test_an_extended_call_is_left_alone_until_its_new_deadline(bench):
    """By its own clock: once for the soft limit, again and again for the hard one."""
    bench.flights.flight = flight(soft=14.0, hard=19.0)
    bench.accept()
    assert bench.at(13.9) == []
    assert bench.at(14) == [("soft", JOB)]
    assert bench.at(18.9) == []
    bench.flights.flight = flight(soft=16.0, hard=21.0)
    assert bench.at(20.9) == []
    assert bench.at(21) == [("hard", JOB)]


def test_a_call_whose_body_has_ended_is_not_killed(bench):
    """Its result is on the way: looked for four times a second, and killed after a minute."""
    bench.flights.flight = flight(ended=True)
    bench.accept()
    assert bench.at(15) == []
    assert bench.hub.delays() == [pytest.approx(RESULT_POLL)]
    assert bench.at(15 + RESULT_SECONDS - 0.01) == []
    assert bench.at(15 + RESULT_SECONDS + RESULT_POLL) == [("hard", JOB)]


def test_a_job_that_no_process_has_accepted_is_passed_over(bench):
    """It waits for its process, and its time has not begun."""
    bench.accept(1)
    bench.accept(2)._worker_pid = None
    assert bench.at(60) == [("soft", 1), ("hard", 1)]


@pytest.mark.parametrize("comes_in", [True, False])
def test_an_event_loop_that_was_held_up_reads_first(bench, comes_in):
    """The result of a call that is due may wait in a pipe; it has LATE seconds to be read."""
    bench.accept()
    timer = bench.hub.timers.pop()
    bench.clock.now = 1100.0
    timer.fire()
    assert bench.pool.done == []
    if comes_in:
        bench.pool._cache.clear()
    assert bench.at(100 + LATE) == ([] if comes_in else [("soft", JOB), ("hard", JOB)])


def test_an_event_loop_that_is_always_late_keeps_the_limits(bench):
    """A look is put off once, not for ever."""
    bench.accept()
    bench.clock.now = 1100.0
    for _ in range(2):
        timer = bench.hub.timers.pop()
        bench.clock.now += 1.0
        timer.fire()
    assert bench.pool.done == [("soft", JOB), ("hard", JOB)]


def test_a_call_that_is_told_late_may_have_ended(bench):
    """Accepted long ago, and only read now: its result is the next that is read."""
    bench.clock.now = 1100.0
    bench.accept(9)._time_accepted = 1000.0
    bench.pool.on_timeout_set(bench.pool._cache[9], SOFT, HARD)
    assert bench.hub.delays()[-1] < 0
    assert bench.at(100) == []
    assert bench.at(100 + LATE) == [("soft", 9), ("hard", 9)]


def test_limits_hold_after_a_reconnect(bench):
    """The event loop has dropped its timers, and the pool registers with it anew."""
    bench.accept()
    bench.at(5)
    bench.hub.timers.clear()
    bench.pool._create_timelimit_handlers(bench.hub)
    assert bench.at(10) == [("soft", JOB)]
    assert bench.at(15) == [("hard", JOB)]


def test_limits_hold_at_a_warm_stop(bench):
    """There is no event loop then: the pool asks, while it reads the last results."""
    bench.flights.flight = flight(soft=12.0, hard=18.0)
    bench.accept()
    bench.hub.timers.clear()
    done = []
    for instant in range(1, 20):
        bench.clock.now = 1000.0 + instant
        for _ in range(2):  # an event loop that stood still for long would read first
            bench.pool._result_handler.check_timeouts()
        done += [(instant, what) for what, _ in bench.pool.done if (instant, what) not in done]
        bench.pool.done.clear()
    assert [(at, what) for at, what in done] == [(12, "soft"), (18, "hard")]


def test_the_pool_s_questions_leave_one_timer(bench):
    """It asks twice a second for as long as the stop takes, and timers go on firing."""
    bench.accept(soft=300.0, hard=450.0)
    for _ in range(100):
        bench.pool._result_handler.check_timeouts()
    assert len(bench.hub.timers) == 1


def test_one_look_at_a_time(bench, monkeypatch):
    """At a stop a thread fires timers while the pool asks."""
    bench.accept()
    monkeypatch.setattr(
        bench.pool, "on_soft_timeout", lambda job: bench.pool._result_handler.check_timeouts()
    )
    bench.at(15)
    assert bench.pool.done == []
    assert not bench.pool._cache


def test_many_kills_let_the_event_loop_turn(bench):
    """Each may take a tenth of a second, in which no heartbeat is sent."""
    bench.pool.seconds_per_kill = 0.06
    for job in range(10):
        bench.accept(job, soft=None)
    bench.hub.run_until(1014.99)
    instants = []
    while bench.pool._cache:
        timer = min(bench.hub.timers, key=lambda timer: timer.at)
        bench.hub.timers.remove(timer)
        bench.clock.now = max(bench.clock.now, timer.at)
        instants.append(bench.clock.now)
        timer.fire()
    assert bench.pool.done == [("hard", job) for job in range(10)]
    assert max(later - earlier for earlier, later in pairwise(instants)) <= LATE + 0.06


def test_a_call_that_becomes_due_during_a_kill_is_next(bench):
    """Not held off as after a loop that was held up by others: its results were being read."""
    bench.pool.seconds_per_kill = LATE + 0.01
    bench.accept(2, soft=None, hard=HARD + 0.001)
    bench.accept(1, soft=None)
    bench.hub.run_until(1014.99)
    bench.hub.turn()
    assert bench.pool.done == [("hard", 1)]
    while bench.pool._cache:
        bench.hub.turn()
    killed_at = bench.clock.now - bench.pool.seconds_per_kill
    assert killed_at <= 1000 + HARD + bench.pool.seconds_per_kill + 2 * TURN


def test_after_the_last_kill_its_process_is_replaced_at_once(bench):
    bench.pool.seconds_per_kill = LATE + 0.01
    bench.accept(1, soft=None)
    bench.accept(2, soft=None, hard=2 * HARD)
    bench.hub.run_until(1000 + HARD - 0.01)
    bench.hub.turn()
    bench.pool._event_process_exit(bench.hub, process(3))
    assert bench.pool.done == [("hard", 1), ("exit", 3)]


def test_kills_that_are_due_come_before_new_processes(bench):
    """To start a process holds the event loop for as long as a kill."""
    bench.pool.seconds_per_kill = LATE + 0.01
    for job in range(3):
        bench.accept(job, soft=None)
    bench.hub.run_until(1014.99)
    bench.pool._pool.pop()
    while bench.pool._cache:
        bench.hub.turn()
        bench.pool._event_process_exit(bench.hub, process(3))
    gone = ("untracked", 3)
    assert bench.pool.done[:5] == [("hard", 0), gone, ("hard", 1), gone, ("hard", 2)]
    assert set(bench.pool.done[5:]) == {"maintain", ("exit", 3)}, "the places are filled then"


def test_a_call_that_cannot_be_settled_does_not_end_the_looks(bench, monkeypatch):
    """Its acknowledgement finds the connection lost, say; the others keep their limits."""

    def fails(result):
        del bench.pool._cache[result._job]
        raise ConnectionError

    monkeypatch.setattr(bench.pool, "on_hard_timeout", fails)
    bench.accept(1, soft=None)
    bench.accept(2, soft=None)
    with pytest.raises(ConnectionError):
        bench.at(15)
    with pytest.raises(ConnectionError):
        bench.at(16)
    assert not bench.pool._cache


@pytest.mark.parametrize("why", ["kill", "exit"])
def test_a_lost_slot_is_looked_for_at_once(bench, why):
    """After a kill and after any other end of a process, several times within a second."""
    if why == "kill":
        bench.accept()
        bench.at(15)
    else:
        bench.pool._event_process_exit(bench.hub, bench.pool._pool[0])
    assert set(NUDGES) <= set(bench.hub.delays())
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
    assert bench.at(NUDGES[0]) == (["maintain"] if maintained else [])


def test_a_call_that_was_accepted_and_has_not_begun_is_waited_for(bench):
    """Its process still imports: the signal would hit that, so only the hard limit is kept."""
    request = BudgetedRequest.__new__(BudgetedRequest)
    bench.accept()._timeout_callback = request.on_timeout
    assert bench.at(10) == []
    assert bench.hub.delays() == [pytest.approx(BEGIN_POLL)]
    assert bench.at(14.9) == []
    assert bench.at(15)[-1] == ("hard", JOB)


def test_records_of_processes_that_are_gone_are_dropped(bench):
    """Not while the process lives, nor while the pool has still to settle its call."""
    bench.flights.recorded = [1, 2, 3, PID]
    bench.accept(soft=None, hard=None)
    bench.pool._event_process_exit(bench.hub, process(3))
    bench.at(NUDGES[0])
    assert bench.flights.forgotten == [3]
    bench.pool._cache.clear()
    bench.at(NUDGES[1])
    assert bench.flights.forgotten == [3, 3, PID]


def test_celery_still_has_what_is_stood_in_front_of():
    """The methods and what they touch: a new Celery that changes them fails here."""

    def parameters(name):
        return list(inspect.signature(getattr(AsynPool, name)).parameters)

    assert parameters("_create_timelimit_handlers") == ["self", "hub"]
    assert parameters("_event_process_exit") == ["self", "hub", "proc"]
    assert parameters("_untrack_child_process") == ["self", "proc", "hub"]
    source = inspect.getsource(AsynPool)
    for name in (
        "_create_timelimit_handlers", "_event_process_exit", "on_timeout_set",
        "on_timeout_cancel", "on_soft_timeout", "on_hard_timeout", "_untrack_child_process",
    ):  # fmt: skip
        assert f"self.{name}" in source
    # Nothing else asks for the table of timers, which is not there any more.
    handlers = ("_create_timelimit_handlers", "_on_soft_timeout", "_on_hard_timeout")
    theirs = "".join(inspect.getsource(getattr(AsynPool, name)) for name in handlers)
    for name in ("_tref_for_id", "_discard_tref"):
        assert source.count(name) == theirs.count(name)
    assert "self.check_timeouts" in inspect.getsource(ResultHandler.on_stop_not_started)
    assert "if self._on_timeout_cancel:" in inspect.getsource(ApplyResult._set)
