"""The watchdog: when it interrupts a call, by a clock and a memory that the test moves."""

from __future__ import annotations

import contextlib
import logging
import threading

import pytest

from celery_budgets import Budget
from celery_budgets.execution.call import Call
from celery_budgets.execution.flight.recorder import ENVIRONMENT
from celery_budgets.execution.limits import watchdog as watchdog_module
from celery_budgets.execution.limits.interrupts import Interrupt, ProcessInterrupt
from celery_budgets.execution.limits.watchdog import FASTEST_TICK, TICK, Watchdog
from celery_budgets.model.budget import TimeLimits

MIB = 1024**2


class FakeInterrupt(Interrupt):
    """Writes down what it was asked to do, and does as a prefork pool does to the call."""

    soft_grace = 0.15
    hard_grace = 0.3

    def __init__(self):
        self.done = []

    def soft(self, call):
        self.done.append("soft")
        call.soft_sent = True

    def hard(self, call):
        self.done.append("hard")
        call.hard_sent = True

    def memory(self, call):
        self.done.append("memory")


class Bench:
    """A watchdog with one call, its clock and its memory in hand; it has no thread."""

    def __init__(self, at_soft="raise"):
        self.interrupt = FakeInterrupt()
        self.call = Call("id", "critic", Budget(soft=at_soft), TimeLimits(10.0, 15.0))
        self.rss = 100 * MIB
        self.elapsed = 0.0
        self.dog = Watchdog(self.interrupt, read_rss=lambda: self.rss, clock=self.clock)
        self.dog._calls[id(self.call)] = self.call, self.interrupt

    def clock(self):
        return self.call.started_mono + self.elapsed

    def at(self, seconds, rss=None):
        """Move to *seconds* after the start of the call, look, and return the delay."""
        self.elapsed = seconds
        self.rss = self.rss if rss is None else rss
        return self.dog.tick()

    @property
    def done(self):
        return self.interrupt.done


@pytest.fixture
def records(caplog):
    """The event names that were logged, in order."""
    caplog.set_level(logging.INFO, logger="celery_budgets")
    return lambda: [record.getMessage().split()[0] for record in caplog.records]


def test_nothing_happens_below_the_limits(records):
    """Looks every 0.1 s, and says nothing."""
    bench = Bench()
    assert bench.at(0) == TICK
    assert bench.at(5) == TICK
    assert bench.done == []
    assert records() == []
    assert not bench.call.soft_exceeded


def test_the_soft_limit(records):
    """Seen at 1.0x, told after the grace of the worker's own timer, once."""
    bench = Bench()
    assert bench.at(9.96) == pytest.approx(0.04)  # not a tick later than the limit
    assert bench.at(10.0) == TICK  # 0.15 s of grace are left
    assert bench.call.soft_exceeded
    assert bench.done == []
    assert bench.at(10.1) == pytest.approx(0.05)  # 10.15 - 10.1
    bench.at(10.15)
    bench.at(10.25)
    assert bench.done == ["soft"]
    assert records() == ["budgets.soft_time_limit"]


def test_the_worker_was_first(records):
    """Where its signal has arrived, the second line stays out of it."""
    bench = Bench()
    bench.call.soft_sent = True
    bench.at(10.5)
    assert bench.done == []
    assert bench.call.soft_exceeded


def test_the_soft_limit_that_only_warns(records):
    """`soft="warn"`: a line in the log and a mark on the call, and the body runs on."""
    bench = Bench(at_soft="warn")
    bench.at(10.5)
    bench.at(14)
    assert bench.done == []
    assert bench.call.soft_exceeded
    assert records() == ["budgets.soft_time_limit"]
    bench.at(15.3)
    assert bench.done == ["hard"]


def test_the_hard_limit():
    """After its grace; asked for again as long as the body runs on."""
    bench = Bench()
    bench.at(10.2)
    assert bench.at(15.28) == pytest.approx(0.02)  # 15.3 - 15.28
    assert bench.done == ["soft"]
    assert bench.at(15.3) == TICK
    bench.at(15.4)
    assert bench.done == ["soft", "hard", "hard"]


def test_a_hard_limit_is_told_once(records):
    """A call that cannot be ended is asked ten times a second, but logged once."""
    bench = Bench()
    bench.call.soft_sent = bench.call.soft_exceeded = True
    for step in range(50):
        bench.at(15.3 + step / 10)
    assert records().count("budgets.hard_time_limit") == 1


def test_a_late_look_goes_to_the_hard_limit_at_once():
    """After a stopped or frozen process: no soft exception into a call that is over."""
    bench = Bench()
    bench.at(60)
    assert bench.done == ["hard"]


def test_an_extension_counts():
    """The limits are those of the call now, not of its start."""
    bench = Bench()
    bench.call.extend(5)
    bench.at(14.9)
    assert bench.done == []
    assert not bench.call.soft_exceeded
    bench.at(15.2)
    bench.at(19.9)
    assert bench.done == ["soft"]
    bench.at(20.3)  # 15 + 5 + 0.3
    assert bench.done == ["soft", "hard"]


def test_a_call_whose_body_has_ended_is_left_alone():
    """While its result is stored nothing may interrupt it."""
    bench = Bench()
    bench.call.open = False
    assert bench.at(60, rss=10**12) == TICK
    assert bench.done == []


def test_a_released_call_is_forgotten():
    """Also one that was never watched."""
    bench = Bench()
    bench.dog.release(bench.call)
    bench.dog.release(bench.call)
    bench.at(60, rss=10**12)
    assert bench.done == []


def test_memory_is_warned_of_once(records):
    """Above 400 MiB, however often it crosses the level; the peak is the highest sample."""
    bench = Bench()
    for seconds, size in enumerate([400, 401, 350, 500, 300]):
        bench.at(seconds, rss=size * MIB)
    assert records() == ["budgets.memory_warning"]
    assert bench.call.memory_warned
    assert bench.call.rss_peak == 500 * MIB
    assert bench.done == []


def test_memory_above_the_hard_limit_ends_the_call(records):
    """Above 512 x 1.5 = 768 MiB, not at it."""
    bench = Bench()
    bench.at(1, rss=768 * MIB)
    assert bench.done == []
    assert bench.at(2, rss=769 * MIB) == TICK
    assert bench.done == ["memory"]
    assert records() == ["budgets.memory_warning", "budgets.memory_limit"]


def test_a_memory_limit_is_told_once(records):
    """On pools that only measure, the log is not filled with one line for each look."""
    bench = Bench()
    for step in range(50):
        bench.at(1 + step / 10, rss=800 * MIB)
    assert records().count("budgets.memory_limit") == 1


def test_it_looks_more_often_while_memory_grows_fast():
    """Half of the time that the growth would need to the limit; never below 10 ms."""
    bench = Bench()
    bench.at(1.0, rss=100 * MIB)
    bench.at(1.1, rss=110 * MIB)
    # 100 MiB/s: 658 MiB are left for 6.6 s, so there is no hurry.
    assert bench.at(1.2, rss=120 * MIB) == TICK
    # 1000 MiB/s: 548 MiB are left for 0.548 s, half of it is above a tick.
    assert bench.at(1.3, rss=220 * MIB) == TICK
    # 4000 MiB/s: 148 MiB are left for 37 ms, half of it is 18.5 ms.
    assert bench.at(1.4, rss=620 * MIB) == pytest.approx(0.0185)
    assert bench.at(1.5, rss=767 * MIB) == FASTEST_TICK
    assert bench.at(1.6, rss=767 * MIB) == TICK  # it stands still
    assert bench.at(1.7, rss=300 * MIB) == TICK  # it shrinks


def test_many_calls_are_looked_at_together():
    """On threads: each has its own limits, and the soonest decides when to look again."""
    bench = Bench()
    soon = Call("soon", "critic", Budget(), TimeLimits(5.05, 6.0))
    soon.soft_at += bench.call.started_mono - soon.started_mono
    soon.hard_at += bench.call.started_mono - soon.started_mono
    bench.dog._calls[id(soon)] = soon, bench.interrupt
    assert bench.at(5.0) == pytest.approx(0.05)
    bench.at(6.5)
    assert bench.done == ["hard"]
    assert not bench.call.hard_sent


def test_the_thread_wakes_up_for_a_call():
    """One thread for all calls: it sleeps between them, and is not started twice."""
    seen, looked = [], threading.Event()

    class Watching(FakeInterrupt):
        def hard(self, call):
            seen.append((call.task_id, threading.current_thread().name))
            call.open = False
            looked.set()

    dog = Watchdog(Watching())
    for number in range(3):
        call = Call(str(number), "critic", Budget(), TimeLimits(-2.0, -1.0))
        looked.clear()
        dog.watch(call)
        assert looked.wait(10)
        dog.release(call)
    assert [task_id for task_id, _ in seen] == ["0", "1", "2"]
    assert {name for _, name in seen} == {"celery-budgets-watchdog"}
    assert sum(t.name == "celery-budgets-watchdog" and t is dog._thread
               for t in threading.enumerate()) == 1  # fmt: skip


def test_it_outlives_a_failure(records, monkeypatch):
    """An interrupt that fails is logged; the next look is as good as the first."""
    waited = []

    def wait(delay=None):
        waited.append(delay)
        if len(waited) == 3:
            raise SystemExit  # out of the endless loop

    bench = Bench()
    bench.elapsed = 60
    monkeypatch.setattr(bench.interrupt, "hard", lambda call: 1 / 0)
    monkeypatch.setattr(bench.dog._wake, "wait", wait)
    with pytest.raises(SystemExit):
        bench.dog._run()
    assert waited == [1.0, 1.0, 1.0]
    assert records().count("budgets.watchdog_failed:") == 3


@pytest.mark.parametrize(("in_pool", "kind"), [(True, ProcessInterrupt), (False, Interrupt)])
def test_the_watchdog_of_a_process(monkeypatch, in_pool, kind):
    """A pool process ends itself; any other process, such as a test, is only measured."""
    monkeypatch.setattr(watchdog_module.watchdog, "_made", None)
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    if in_pool:
        monkeypatch.setenv(ENVIRONMENT, "/dev/shm/anywhere")
    dog = watchdog_module.watchdog()
    assert type(dog.interrupt) is kind
    assert watchdog_module.watchdog() is dog


def test_two_threads_start_it_once(monkeypatch):
    """Two first calls at once: a second thread would look at each call too."""
    together, started = threading.Barrier(2), []

    class Slow(threading.Thread):
        def __init__(self, **options):
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(timeout=0.5)  # broken where only one comes, as it should be
            super().__init__(**options)

        def start(self):
            started.append(self)

    dog = Watchdog(FakeInterrupt())
    calls = [Call(name, "critic", Budget(), TimeLimits(10.0, 15.0)) for name in "ab"]
    threads = [threading.Thread(target=dog.watch, args=(call,)) for call in calls]
    monkeypatch.setattr(threading, "Thread", Slow)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert len(started) == 1
