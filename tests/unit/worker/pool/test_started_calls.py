"""What is read and written before a pool drops the calls that no process has accepted."""

from __future__ import annotations

import os
import select
import threading
from time import monotonic
from types import SimpleNamespace

import pytest
from celery.concurrency.asynpool import AsynPool

from celery_budgets.worker.pool import started_calls
from celery_budgets.worker.pool.started_calls import StartedCalls


class Process:
    """A pool process: the ends of its pipes that the worker has, and those that it has itself."""

    def __init__(self, pid):
        self.pid = pid
        self.alive = True
        self.outqR_fd, self.says = os.pipe()
        self.hears, self.inqW_fd = os.pipe()
        sentinel, self.life = os.pipe()
        self._popen = SimpleNamespace(sentinel=sentinel)

    def _is_alive(self):
        return self.alive

    def die(self):
        self.alive = False
        os.write(self.life, b"x")

    def close(self):
        ends = (self.outqR_fd, self.says, self.hears, self.inqW_fd, self._popen.sentinel, self.life)
        for descriptor in ends:
            os.close(descriptor)


class Bench:
    """A pool of processes that say one byte for each call: which one has begun."""

    def __init__(self):
        self.processes, self.done = [], []
        self.pool = SimpleNamespace(
            _cache={}, _active_writers=set(), _busy_workers=set(), synack=False,
            handle_result_event=self.read, maintain_pool=lambda: self.done.append("maintain"),
            process_flush_queues=self.read_all,
            on_job_process_down=lambda job, pid: self.done.append("down"),
        )  # fmt: skip
        self.hub = SimpleNamespace(readers={}, remove=lambda descriptor: None)
        self.task_pool = SimpleNamespace(_pool=self.pool, flush=lambda: self.done.append("flush"))
        StartedCalls(self.task_pool, self.hub).attach()

    def flush(self):
        """Have the connection lost, as celery.worker.consumer.Consumer.on_close does."""
        self.task_pool.flush()
        assert self.done[-2:] == ["maintain", "flush"]
        return self.done[:-2]

    def job(self, number, process):
        """Add a job that is written to *process*."""
        job = SimpleNamespace(
            _write_to=process, _worker_pid=None, _accepted=False, _writer=lambda: None,
            ready=lambda: False,
        )  # fmt: skip
        self.pool._cache[number] = job
        return job

    def process(self):
        process = Process(100 + len(self.processes))
        self.processes.append(process)
        return process

    def read_all(self, process):
        if select.select([process.outqR_fd], [], [], 0)[0]:
            self.read(process.outqR_fd)

    def read(self, descriptor):
        (number,) = os.read(descriptor, 1)
        job = self.pool._cache[number]
        job._accepted, job._worker_pid = True, job._write_to.pid
        self.done.append(number)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(started_calls, "BEGIN_SECONDS", 0.2)
    bench = Bench()
    yield bench
    for process in bench.processes:
        process.close()


def test_calls_that_have_begun_are_heard_of_first(bench):
    """All of them, before Celery drops the others."""
    for number in (1, 2, 3):
        process = bench.process()
        bench.job(number, process)
        os.write(process.says, bytes([number]))
    assert sorted(bench.flush()) == [1, 2, 3]


def test_a_process_that_says_nothing_is_not_waited_for_long(bench):
    """Nor does it keep the others from being heard."""
    bench.job(1, bench.process())
    process = bench.process()
    bench.job(2, process)
    os.write(process.says, bytes([2]))
    started = monotonic()
    assert bench.flush() == [2]
    assert 0.2 <= monotonic() - started < 5


def test_a_process_that_dies_is_not_waited_for(bench, monkeypatch):
    """The worker has the other end of its pipe too, and sees no end of file."""
    monkeypatch.setattr(started_calls, "BEGIN_SECONDS", 60)
    process = bench.process()
    bench.job(1, process)
    threading.Timer(0.1, process.die).start()
    assert bench.flush() == []


@pytest.mark.parametrize("why", ["not written", "behind another", "dead", "accepted"])
def test_what_does_not_begin_now_is_not_waited_for(bench, monkeypatch, why):
    """It is dropped at once, as Celery does."""
    monkeypatch.setattr(started_calls, "BEGIN_SECONDS", 60)
    process = bench.process()
    job = bench.job(1, process)
    if why == "not written":
        job._write_to = None
    elif why == "behind another":  # with -O default
        running = bench.job(2, process)
        running._accepted, running._worker_pid = True, process.pid
    elif why == "dead":
        process.alive = False
    else:
        job._accepted, job._worker_pid = True, process.pid
    assert bench.flush() == []


def test_the_rest_of_a_message_is_read(bench):
    """The event loop had its beginning, and a generator for the rest."""
    process = bench.process()
    bench.job(1, process)

    def rest():
        while True:
            descriptor = process.outqR_fd
            if os.read(descriptor, 1) == b"!":
                break
            yield
        bench.hub.readers.clear()  # as ResultHandler._recv_message puts the usual reader back

    bench.hub.readers[process.outqR_fd] = rest(), ()
    os.write(process.says, b"..!\x01")
    assert bench.flush() == [1]


def test_the_rest_of_a_message_is_written(bench):
    """A process that waits for it could not leave: it would take a sentinel for its end."""
    process = bench.process()
    job = bench.job(1, process)

    def write():
        for byte in b"abc":
            os.write(process.inqW_fd, bytes([byte]))
            yield
        bench.pool._active_writers.clear()
        os.write(process.says, bytes([1]))

    writer = write()
    bench.pool._active_writers.add(writer)
    job._writer = lambda: writer
    assert bench.flush() == [1]
    assert os.read(process.hears, 10) == b"abc"


@pytest.mark.parametrize("ended", [True, False])
def test_calls_that_run_stay_known_on_celery_5_5(bench, ended):
    """It drops them at a reconnect, and forgets which processes are busy; later ones do not."""
    process = bench.process()
    job = bench.job(1, process)
    os.write(process.says, bytes([1]))
    bench.job(2, None)  # not written: it comes again
    celery_flush = bench.task_pool.flush

    def flush():
        celery_flush()
        bench.pool._cache.clear()
        bench.pool._busy_workers.clear()
        job.ready = lambda: ended

    bench.task_pool.flush = flush
    StartedCalls(bench.task_pool, bench.hub).attach()
    bench.task_pool.flush()
    assert bench.pool._cache == ({} if ended else {1: job})
    assert bench.pool._busy_workers == (set() if ended else {process.inqW_fd})


@pytest.mark.parametrize("begun", [True, False])
def test_a_call_that_has_begun_goes_to_no_other_process(bench, begun):
    """Its process has died after the others were found dead, and its report is not read yet."""
    process = bench.process()
    job = bench.job(1, process)
    if begun:
        os.write(process.says, bytes([1]))
    process.die()
    bench.pool.on_job_process_down(job, process.pid)
    assert bench.done == ([1] if begun else ["down"])
    # In the next round it is known to have begun, and Celery takes it for lost.
    bench.pool.on_job_process_down(job, process.pid)
    assert bench.done[-1] == "down"


def test_a_call_that_was_not_written_goes_to_another_process(bench):
    """Nothing is read for it."""
    job = bench.job(1, None)
    bench.pool.on_job_process_down(job, 100)
    assert bench.done == ["down"]


def test_a_pool_whose_processes_ask_is_left_alone(bench):
    """With synack none begins before the worker agrees, and Celery says no."""
    bench.pool.synack = True
    bench.task_pool.flush = bench.pool.on_job_process_down = theirs = object()
    StartedCalls(bench.task_pool, bench.hub).attach()
    assert bench.task_pool.flush is theirs
    assert bench.pool.on_job_process_down is theirs


def test_a_failure_is_logged_and_the_pool_flushed(bench, caplog):
    """A stop goes on whatever happens, and the other processes are heard."""

    def fails(descriptor):
        os.read(descriptor, 1)
        raise ValueError("no message")

    process = bench.process()
    bench.job(1, process)
    os.write(process.says, b"x")
    bench.hub.readers[process.outqR_fd] = fails, (process.outqR_fd,)
    other = bench.process()
    bench.job(2, other)
    os.write(other.says, bytes([2]))
    assert bench.flush() == [2]
    assert "budgets.begun_unknown" in caplog.text


def test_celery_still_has_what_is_touched():
    """A new Celery that changes it fails here."""
    import inspect

    source = inspect.getsource(AsynPool)
    for touched in (
        "job._write_to = proc", "job._writer = ref(cor)", "self._active_writers",
        "self.handle_result_event", "def flush(self)", "if not job._accepted:",
        "def on_job_process_down(self, job, pid_gone)", "def process_flush_queues(self, proc)",
    ):  # fmt: skip
        assert touched in source
