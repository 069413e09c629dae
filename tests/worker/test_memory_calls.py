"""Memory of calls with real workers: warned, raised, killed; each call with one outcome."""

from __future__ import annotations

import threading
import time

import psutil
import pytest
from celery.exceptions import WorkerLostError

from celery_budgets import MemoryLimitExceeded
from celery_budgets.units import MIB
from tests.support.marks import first_of
from tests.support.waiting import wait_until
from tests.worker.memory_app import MAX_RSS

APP = "tests.worker.memory_app"
HARD_RSS = int(1.5 * MAX_RSS)


def error_of(result, timeout=60):
    """Return the error that the caller of *result* gets, or ``None``."""
    try:
        result.get(timeout=timeout)
    except (MemoryLimitExceeded, WorkerLostError) as exc:
        return exc
    return None


def calls_of(app, task_name, count=1):
    """Return the statistics of a task once *count* of its calls have ended."""

    def ended():
        calls = app.budgets.statistics().tasks.get(f"{APP}.{task_name}")
        return calls if calls is not None and calls.total >= count else None

    return wait_until(ended, f"{count} calls of {task_name} have ended", timeout=20)


def runs_of(app, result):
    """Return how often the body of a call was begun."""
    return int(app.redis().get(f"runs:{result.id}") or 0)


class Sampler:
    """The highest RSS of any pool process of a worker, seen from outside."""

    def __init__(self, worker):
        self._worker = worker
        self._stop = threading.Event()
        self.highest = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._stop.wait(0.01):
            for pid in self._worker.pool_pids():
                try:
                    self.highest = max(self.highest, psutil.Process(pid).memory_info().rss)
                except psutil.Error:
                    continue

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.fixture
def lane(worker):
    """A worker of the lane with two slots."""
    return worker(APP, "-Q", "lane", "-c", "2")


@pytest.mark.slow
def test_every_call_of_two_hundred_has_one_outcome(worker, load_app, broker_url):
    """A tenth goes to 1.2x, a tenth to 2x of the limit: none lost, none twice, none above 1.5x."""
    app = load_app(APP)
    running = worker(APP, "-Q", "lane", "-c", "2")
    # What a process has before its first call, and what one tick (0.1 s) adds at this speed.
    base = psutil.Process(running.pool_pids()[0]).memory_info().rss
    seconds = 0.4
    growth = 2 * MAX_RSS / seconds * 0.1
    sizes = {1: int(1.2 * MAX_RSS) - base, 2: 2 * MAX_RSS}
    with Sampler(running) as sampler:
        results = [
            app.take.delay(sizes[i % 10], seconds) if i % 10 in sizes else app.quick.delay(i)
            for i in range(200)
        ]
        errors = [error_of(result, timeout=120) for result in results]
    killed = [isinstance(error, MemoryLimitExceeded) for error in errors]
    assert killed == [i % 10 == 2 for i in range(200)], running.tail()
    assert all(error.limit == HARD_RSS < error.rss for error in errors if error)
    assert [runs_of(app, result) for result in results] == [1] * 200
    total = wait_until(
        lambda: (s := app.budgets.statistics().total).total >= 200 and s, "all ended"
    )
    assert dict(total.outcomes) == {"succeeded": 180, "memory_limit": 20}
    # One warning per call that went over the warning level, and no more.
    assert running.log.count("budgets.memory_warning") == 40
    print(f"highest RSS {sampler.highest / MAX_RSS:.2f} x of the limit")
    assert sampler.highest <= HARD_RSS + growth


def test_a_call_that_grows_by_a_gigabyte_per_second(lane, load_app):
    """Python code is killed before it passes its hard limit by more than 300 MiB."""
    app = load_app(APP)
    with Sampler(lane) as sampler:
        result = app.gigabyte_per_second.delay()
        error = error_of(result)
    assert isinstance(error, MemoryLimitExceeded), lane.tail()
    over = (sampler.highest - HARD_RSS) / MIB
    print(f"hard limit passed by {over:.0f} MiB; killed at {(error.rss - HARD_RSS) / MIB:.0f} MiB")
    assert over <= 300


@pytest.mark.slow
def test_a_call_in_c_that_holds_the_lock_is_killed_by_the_worker(lane, load_app):
    """The second line: the watchdog stands still, the worker's own samples do not."""
    app = load_app(APP)
    began = time.monotonic()
    result, neighbour = app.in_c_with_the_lock.delay(2 * MAX_RSS, 10**10), app.short.delay(3)
    error = error_of(result)
    assert isinstance(error, MemoryLimitExceeded), lane.tail()
    assert time.monotonic() - began < 10
    assert error.limit == HARD_RSS < error.rss
    assert neighbour.get(timeout=20)
    assert dict(calls_of(app, "in_c_with_the_lock").outcomes) == {"memory_limit": 1}
    lane.wait_for_log("budgets.memory_limit", "by=worker")
    assert app.quick.delay(1).get(timeout=20) == 1


def test_memory_that_raises(worker, load_app):
    """memory="raise": MemoryLimitExceeded in the call at 1.0x; the process lives on."""
    app = load_app(APP)
    running = worker(APP, "-Q", "raising", "-c", "1")
    pool = running.pool_pids()
    error = error_of(app.take_raising.delay(int(1.1 * MAX_RSS), stay=20))
    assert isinstance(error, MemoryLimitExceeded), running.tail()
    assert error.limit == MAX_RSS < error.rss <= HARD_RSS
    assert dict(calls_of(app, "take_raising").outcomes) == {"memory_limit": 1}
    assert app.take_raising.delay(1).get(timeout=20) == 1
    assert running.pool_pids() == pool, running.tail()


@pytest.mark.slow
def test_without_the_guard_memory_is_only_measured(worker, load_app):
    """budgets_memory_guard=False: no warning and no kill, and the peak is in the statistics."""
    app = load_app(APP)
    running = worker(APP, "-Q", "lane", "-c", "1", env={"NO_GUARD": "1"})
    assert app.take.delay(2 * MAX_RSS, 0.3, 0.3).get(timeout=30)
    calls = calls_of(app, "take")
    assert dict(calls.outcomes) == {"succeeded": 1}
    assert calls.rss_peak_bytes > 2 * MAX_RSS
    assert "budgets.memory" not in running.log


@pytest.mark.parametrize(
    ("name", "error", "outcome"),
    first_of(
        ("out_of_memory", MemoryLimitExceeded, "memory_limit"),
        ("killed", WorkerLostError, "worker_lost"),
        ("under_rlimit", MemoryLimitExceeded, "memory_limit"),
    ),
)
def test_other_ends_for_memory_end_one_call(lane, load_app, name, error, outcome):
    """MemoryError, RLIMIT_AS and a kill from outside: one outcome, and the worker lives on."""
    app = load_app(APP)
    result = getattr(app, name).delay()
    assert isinstance(error_of(result), error), lane.tail()
    assert dict(calls_of(app, name).outcomes) == {outcome: 1}
    assert runs_of(app, result) == 1
    assert app.quick.delay("next").get(timeout=20) == "next"


def test_a_process_above_the_limit_takes_no_further_call(lane, load_app):
    """What a call leaves behind replaces its process after the result was sent, and only then."""
    app = load_app(APP)
    fat = app.keep.delay(MAX_RSS).get(timeout=20)
    lane.wait_for_log("budgets.process_leaves")
    later = {app.pid.delay().get(timeout=20) for _ in range(10)}
    assert fat not in later, lane.tail()
    assert dict(app.budgets.statistics().total.outcomes) == {"succeeded": 11}


def test_a_spike_that_was_given_back_replaces_nothing(worker, load_app):
    """The current size counts, not the highest ever (as Celery's own rule does)."""
    app = load_app(APP)
    running = worker(APP, "-Q", "lane", "-c", "1")
    pids = {app.spike.delay(MAX_RSS).get(timeout=20) for _ in range(5)}
    assert len(pids) == 1, running.tail()
    assert "budgets.process_leaves" not in running.log


@pytest.mark.slow
@pytest.mark.parametrize("how", first_of("memory", "lost"))
def test_a_repeat_offender_is_final(worker, load_app, broker_url, how):
    """max_kills=2: three runs of the first message; the same call sent anew gets one more."""
    app = load_app(APP)
    running = worker(APP, "-Q", "lane", "-c", "1")
    error = MemoryLimitExceeded if how == "memory" else WorkerLostError
    outcome = "memory_limit" if how == "memory" else "worker_lost"
    first = app.killed_often.delay(how)
    assert isinstance(error_of(first), error), running.tail()
    assert runs_of(app, first) == 3, running.tail()
    again, other = app.killed_often.delay(how), app.killed_often.delay(how, "other")
    assert isinstance(error_of(again), error)
    assert runs_of(app, again) == 1
    assert isinstance(error_of(other), error)
    assert runs_of(app, other) == 3
    assert dict(calls_of(app, "killed_often", 7).outcomes) == {outcome: 7}
    running.wait_for_log("budgets.kill_is_final", again.id, "kills=4 max_kills=2")
