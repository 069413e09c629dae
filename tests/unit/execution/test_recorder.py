"""The flight recorder: what a process wrote down is readable after its death."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat

import pytest

from celery_budgets import Budget
from celery_budgets.execution.call import Call
from celery_budgets.execution.flight import recorder as recorder_module
from celery_budgets.execution.flight.directory import map_file
from celery_budgets.execution.flight.reader import FlightReader
from celery_budgets.execution.flight.record import Reason
from celery_budgets.execution.flight.recorder import ENVIRONMENT, FlightRecorder, recorder
from celery_budgets.model.budget import TimeLimits

TRACE, SPAN = bytes(range(16)), bytes(range(8))


@pytest.fixture
def reader(monkeypatch, tmp_path):
    """A reader as in a worker; this process is as before when the test ends."""
    monkeypatch.setenv(ENVIRONMENT, "")
    monkeypatch.setattr(recorder_module, "_own_folder", None)
    monkeypatch.setattr(recorder, "_made", None)
    reader = FlightReader()
    yield reader
    reader.close()


def new_call(task_id="some-id"):
    call = Call(task_id, "critic", Budget(), TimeLimits(10.0, 15.0), rss=100)
    call.soft_at, call.hard_at, call.started_at = 11.5, 16.25, 1_700_000_000.5
    return call


def fly_and_die(how, task_id, ready):
    """Write a record as a pool process does, and die in the middle of the call."""
    call = new_call(task_id)
    recorder().begin(call, TRACE, SPAN)
    call.rss_peak = 700
    recorder().peak(call)
    call.soft_at, call.hard_at = 21.5, 26.25
    recorder().deadlines(call)
    if how == "hard":
        recorder().killed(call, Reason.HARD_TIME_LIMIT)
    if how == "ended":
        call.soft_exceeded = True
        call.wall_seconds, call.rss_after = 2.5, 300
        recorder().end(call)
    ready.send(os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


def died(context, how, task_id="some-id"):
    """Return the pid of a process that has flown and died."""
    here, there = context.Pipe()
    process = context.Process(target=fly_and_die, args=(how, task_id, there), daemon=True)
    process.start()
    pid = here.recv()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    return pid


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("how", ["running", "hard", "ended"])
def test_a_record_outlives_its_process(reader, method, how):
    """Everything written before a SIGKILL is there, whichever way the process was started."""
    pid = died(multiprocessing.get_context(method), how)
    flight = reader.read(pid, "some-id")
    assert flight == reader.current(pid)
    assert (flight.task_id, flight.ended) == ("some-id", how == "ended")
    assert flight.reason is (Reason.HARD_TIME_LIMIT if how == "hard" else Reason.NONE)
    assert flight.started_at == 1_700_000_000.5
    assert (flight.soft_deadline, flight.hard_deadline) == (21.5, 26.25)
    assert (flight.rss_before_bytes, flight.rss_peak_bytes) == (100, 700)
    assert (flight.trace_id, flight.span_id) == (TRACE, SPAN)
    if how == "ended":
        assert (flight.wall_seconds, flight.rss_after_bytes) == (2.5, 300)
        assert flight.soft_exceeded


def test_only_the_call_that_is_asked_for(reader):
    """The record of another call of the same process is none of this one."""
    pid = died(multiprocessing.get_context("fork"), "running")
    assert reader.read(pid, "another-id") is None
    assert reader.read(None, "some-id") is None


@pytest.mark.parametrize(
    "task_id", ["", "x" * 128, "x" * 200, "ü" * 64, "ü" * 100, "x" * 127 + "ü"]
)
def test_any_task_id_finds_its_record(reader, task_id):
    """Ids are the user's: they may be long, and in any script."""
    pid = died(multiprocessing.get_context("fork"), "running", task_id)
    assert reader.read(pid, task_id) is not None
    assert reader.read(pid, "y") is None


def test_a_process_that_wrote_nothing(reader):
    """No record is no answer, and so is one that is only just being made."""
    assert reader.current(os.getpid()) is None
    path = os.path.join(reader.folder, "12345")
    open(path, "wb").close()
    assert reader.current(12345) is None


def test_only_the_running_call_is_written_of(reader):
    """A watchdog that is late for a call does not write into the record of the next one."""
    own = FlightRecorder(None)
    own._map = map_file(os.path.join(reader.folder, "12345"), create=True)
    ended = new_call("ended")
    own.begin(ended)
    own.end(ended)
    own.begin(new_call("next"))
    ended.soft_at = ended.hard_at = 99.0
    own.killed(ended, Reason.HARD_TIME_LIMIT)
    own.deadlines(ended)
    flight = reader.current(12345)
    assert (flight.task_id, flight.reason) == ("next", Reason.NONE)
    assert (flight.soft_deadline, flight.hard_deadline) == (11.5, 16.25)


def test_a_pid_that_comes_again(reader):
    """After forget() the record of a process of the same number is its own."""
    context = multiprocessing.get_context("fork")
    pid = died(context, "hard")
    assert reader.current(pid).reason is Reason.HARD_TIME_LIMIT
    assert reader.pids() == [pid]
    reader.forget(pid)
    assert reader.pids() == []
    assert reader.current(pid) is None
    reader.forget(pid)  # of a process that is forgotten already: nothing
    again = FlightRecorder(None)
    again._map = map_file(os.path.join(reader.folder, str(pid)), create=True)
    assert reader.current(pid) is None  # nothing written yet
    again.begin(new_call("other-id"))
    assert reader.current(pid).task_id == "other-id"


def test_the_next_call_takes_the_place_of_the_last(reader):
    """One record per process: a new call starts with a clean reason and its own memory."""
    writer = FlightRecorder(None)
    writer._map = map_file(os.path.join(reader.folder, "77"), create=True)
    first = new_call("first")
    writer.begin(first, TRACE, SPAN)
    writer.killed(first, Reason.MEMORY_LIMIT)
    writer.begin(new_call("second"))
    flight = reader.current(77)
    assert (flight.task_id, flight.reason, flight.ended) == ("second", Reason.NONE, False)
    assert (flight.trace_id, flight.span_id) == (bytes(16), bytes(8))
    assert reader.read(77, "first") is None


def test_calls_of_this_very_process_need_no_file(reader):
    """On threads, gevent and solo the worker is the process: a table, taken from once."""
    writer = recorder()
    call = new_call()
    writer.begin(call, TRACE, SPAN)
    call.wall_seconds = 2.5
    writer.end(call)
    assert reader.pids() == []
    flight = writer.take("some-id")
    assert (flight.wall_seconds, flight.trace_id, flight.span_id) == (2.5, TRACE, SPAN)
    assert writer.take("some-id") is None


def test_the_table_does_not_grow_for_ever(reader, monkeypatch):
    """Records that nobody takes make room for later ones, the oldest first."""
    monkeypatch.setattr(recorder_module, "_LOCAL_RECORDS", 3)
    for number in range(5):
        recorder().end(new_call(f"id-{number}"))
    assert [recorder().take(f"id-{n}") is None for n in range(5)] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_process_without_a_worker_records_nothing_on_disk(monkeypatch):
    """A program that calls a task eagerly makes no folder and no file."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(recorder, "_made", None)
    recorder().begin(new_call())
    assert recorder()._map is None


def test_records_are_the_users_alone(reader):
    """Folder and files are not readable for others: task ids may be secrets."""
    pid = died(multiprocessing.get_context("fork"), "running")
    assert stat.S_IMODE(os.stat(reader.folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(os.path.join(reader.folder, str(pid))).st_mode) == 0o600


def test_only_its_owner_removes_the_folder(reader):
    """A forked child that inherits the reader leaves the records alone when it ends."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=reader.close, daemon=True)
    child.start()
    child.join(30)
    assert os.path.isdir(reader.folder)
    reader.close()
    assert not os.path.exists(reader.folder)
    reader.close()


def test_a_call_that_waits_for_its_own_lane_is_seen(reader, monkeypatch):
    """While it waits, and not of the next call in the same process."""
    monkeypatch.setattr(recorder_module, "_own_folder", None)
    writer, call = FlightRecorder(reader.folder), new_call()
    seen = []
    writer.begin(call)
    for waits in (True, False, True):
        writer.waits(call, waits=waits)
        flight = reader.read(os.getpid(), call.task_id)
        seen.append((flight.waits, flight.task_id, flight.soft_deadline))
    assert seen == [(waits, "some-id", 11.5) for waits in (True, False, True)]
    writer.begin(new_call("next"))
    writer.waits(call, waits=True)
    assert not reader.current(os.getpid()).waits


def test_without_a_file_the_ids_of_waiting_calls_are_kept():
    """Of calls in the worker's own process, where there are several at once."""
    writer, call = FlightRecorder(None), new_call()
    writer.waits(call, waits=True)
    assert writer.waiting == {"some-id"}
    writer.waits(call, waits=False)
    assert writer.waiting == set()


def test_an_announcement_reaches_the_process_that_it_is_for(reader):
    """And is taken back, where the process lives on."""
    child = multiprocessing.get_context("fork").Pipe()
    pid = os.fork()
    if not pid:
        try:
            recorder().begin(new_call())
            child[1].send(recorder().is_announced())
            while not recorder().is_announced():
                pass
            child[1].send(True)
            while recorder().is_announced():
                pass
            child[1].send(False)
        finally:
            os._exit(0)
    try:
        assert child[0].recv() is False
        reader.announce(pid)
        assert child[0].recv() is True
        reader.announce(pid, ends=False)
        assert child[0].recv() is False
    finally:
        os.waitpid(pid, 0)
