"""What is read and written before a pool drops the calls that no process has accepted."""

from __future__ import annotations

import os
from time import monotonic
from types import SimpleNamespace

import pytest
from celery.concurrency.asynpool import AsynPool

from celery_budgets.worker import begun as begun_module
from celery_budgets.worker.begun import Begun


class Process:
    """A pool process: the ends of its pipes that the worker has, and those that it has itself."""

    def __init__(self, pid):
        self.pid = pid
        self.alive = True
        self.outqR_fd, self.says = os.pipe()
        self.hears, self.inqW_fd = os.pipe()

    def _is_alive(self):
        return self.alive

    def close(self):
        for descriptor in (self.outqR_fd, self.says, self.hears, self.inqW_fd):
            os.close(descriptor)


class Bench:
    """A pool of processes that say one byte for each call: which one has begun."""

    def __init__(self):
        self.processes, self.done = [], []
        self.pool = SimpleNamespace(_cache={}, _active_writers=set(), handle_result_event=self.read)
        self.hub = SimpleNamespace(readers={})
        self.begun = Begun(self.pool, self.hub, lambda: self.done.append("flush"))

    def job(self, number, process, **state):
        """Add a job that is written to *process*."""
        job = SimpleNamespace(
            _write_to=process, _worker_pid=None, _accepted=False, _writer=lambda: None, **state
        )
        self.pool._cache[number] = job
        return job

    def process(self):
        process = Process(100 + len(self.processes))
        self.processes.append(process)
        return process

    def read(self, descriptor):
        (number,) = os.read(descriptor, 1)
        job = self.pool._cache[number]
        job._accepted, job._worker_pid = True, job._write_to.pid
        self.done.append(number)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(begun_module, "BEGIN_SECONDS", 0.2)
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
    bench.begun.flush()
    assert sorted(bench.done[:-1]) == [1, 2, 3]
    assert bench.done[-1] == "flush"


def test_a_process_that_says_nothing_is_not_waited_for_long(bench):
    """Nor does it keep the others from being heard."""
    bench.job(1, bench.process())
    process = bench.process()
    bench.job(2, process)
    os.write(process.says, bytes([2]))
    started = monotonic()
    bench.begun.flush()
    assert bench.done == [2, "flush"]
    assert 0.2 <= monotonic() - started < 5


@pytest.mark.parametrize("why", ["not written", "behind another", "dead", "accepted"])
def test_what_does_not_begin_now_is_not_waited_for(bench, monkeypatch, why):
    """It is dropped at once, as Celery does."""
    monkeypatch.setattr(begun_module, "BEGIN_SECONDS", 60)
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
    bench.begun.flush()
    assert bench.done == ["flush"]


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
    bench.begun.flush()
    assert bench.done == [1, "flush"]


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
    bench.begun.flush()
    assert os.read(process.hears, 10) == b"abc"
    assert bench.done == [1, "flush"]


def test_a_failure_is_logged_and_the_pool_flushed(bench, monkeypatch, caplog):
    """A stop goes on whatever happens."""

    def fails(descriptor):
        raise ValueError("no message")

    process = bench.process()
    bench.job(1, process)
    os.write(process.says, b"x")
    monkeypatch.setattr(bench.pool, "handle_result_event", fails)
    bench.begun.flush()
    assert bench.done == ["flush"]
    assert "budgets.begun_unknown" in caplog.text


def test_celery_still_has_what_is_touched():
    """A new Celery that changes it fails here."""
    import inspect

    source = inspect.getsource(AsynPool)
    for touched in (
        "job._write_to = proc", "job._writer = ref(cor)", "self._active_writers",
        "self.handle_result_event", "def flush(self)",
    ):  # fmt: skip
        assert touched in source
