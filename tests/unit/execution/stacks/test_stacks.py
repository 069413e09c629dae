"""Stacks in one process: which frames are a body's, and what faulthandler writes of them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

from celery_budgets.execution import body
from celery_budgets.execution.call import Call
from celery_budgets.execution.limits import interrupts
from celery_budgets.execution.stacks import frames, reader
from celery_budgets.execution.stacks.dump import heading, is_complete, stacks_in, text_of
from celery_budgets.execution.stacks.reader import StackReader
from celery_budgets.execution.stacks.writer import SIGNAL, StackWriter
from celery_budgets.model.budget import Budget, TimeLimits
from celery_budgets.model.stack import MOST_BYTES, MOST_FRAMES, Frame, Stack, capped

BODY = Frame(*frames.MARKER[:1], 42, frames.MARKER[1])
OUTER = Frame("/opt/billiard/pool.py", 1, "<module>")
OWN = Frame("/srv/tools.py", 7, "fetch")


def test_the_marker_is_the_function_that_runs_bodies():
    """It is named by its path, since importing it would be a detour."""
    code = body.run_body.__code__
    assert (code.co_filename, code.co_name) == frames.MARKER


def test_frames_around_the_body_are_left_out():
    """Those of the pool, of Celery's trace, and of this package in between."""
    called = Frame(os.path.join(os.path.dirname(frames.MARKER[0]), "other.py"), 3, "run")
    assert frames.below_body([OUTER, BODY, called, OWN]) == (OWN,)
    assert frames.below_body([OUTER, OWN]) == ()


def test_a_handler_that_has_interrupted_the_body_is_left_out():
    """The soft limit's signal may come between two steps of a regex, in the moment of the dump."""
    handler = Frame(interrupts.__file__, 9, "_on_soft_signal")
    beneath = Frame("/usr/lib/python3.13/threading.py", 5, "wait")
    assert frames.below_body([BODY, OWN, handler, beneath]) == (OWN,)


def test_a_deep_stack_is_capped_in_the_middle():
    """Its ends tell most; so they stay, within both caps."""
    deep = [Frame(f"/srv/{number}.py", number, "f" * 100) for number in range(500)]
    kept = capped(deep)
    assert len(kept) <= MOST_FRAMES
    assert sum(len(file) + len(function) for file, _, function in kept) <= MOST_BYTES
    assert (kept[0], kept[-1]) == (deep[0], deep[-1])


def test_the_label_names_what_the_users_code_called():
    """The innermost frame that is neither in the standard library nor in a package."""
    library = Frame(threading.__file__, 9, "wait")
    assert Stack((OWN, library, library), "asked").label == "tools.py:7 threading.wait"
    assert Stack((OWN,), "asked").label == "tools.py:7 fetch"


def test_what_faulthandler_writes_is_read():
    """With its escapes, its cut, and only the sections of the call."""
    text = (
        f"{heading('asked', 1.5, 2.5)}Stack (most recent call first):\n"
        '  File "/srv/caf\\xe9.py", line 3 in f\\u20ac\n  File "/x.py", line ??? in g\n  ...\n'
        f"{heading('asked', 9.5, 10.5)}{text_of([OWN])}"
    )
    (first,) = stacks_in(text, 1.5)
    assert first.frames == (Frame("/x.py", 0, "g"), Frame("/srv/café.py", 3, "f€"))
    assert list(stacks_in(text, 9.5)) == [Stack((OWN,), "asked", 10.5)]
    assert list(stacks_in(text, 3.5)) == []


@pytest.mark.parametrize(
    ("last", "complete"),
    [
        ('  File "/bin/celery", line 8 in <module>\n', True),
        ('  File "/bin/celery", line 8 in <mod', False),
        ('  File "/bin/celery", line 8 in <module>', False),
        ('  File "<frozen runpy>", line 198 in _run_module_as_main\n', True),
        ('  File "/srv/imported_by_a_body.py", line 1 in <module>\n', False),
        ("  ...\n", True),
        ("", False),
    ],
)
def test_a_stack_ends_with_the_outermost_frame_of_its_process(last, complete):
    """``python -m celery`` begins elsewhere than ``celery``; a body may import a module."""
    outermost = {("/bin/celery", "<module>"), ("<frozen runpy>", "_run_module_as_main")}
    assert is_complete(last, outermost) is complete


@pytest.mark.skipif(SIGNAL is None, reason="there is no such signal here")
@pytest.mark.parametrize("handled", [True, False])
def test_a_process_writes_its_stack_when_it_is_asked(tmp_path, handled):
    """One that does not handle the signal is not sent it, which would end it."""
    ready, pid = threading.Event(), os.fork()
    if pid == 0:
        try:
            if handled:
                StackWriter(str(tmp_path), threads=True)
            (tmp_path / "ready").touch()
            body.run_body(None, partial(time.sleep, 60))  # signal.pause would return
        finally:
            os._exit(1)
    while not (tmp_path / "ready").exists():
        ready.wait(0.01)
    flight = SimpleNamespace(ended=False, started_at=1.25)
    flights = SimpleNamespace(folder=str(tmp_path), current=lambda pid: flight)
    stacks = StackReader(flights)
    try:
        assert stacks.take(pid, "asked") is handled
        found = stacks.of(pid, 1.25)
        # Below the body there is only a function in C.
        assert not found
        text = (tmp_path / f"{pid}.stack").read_text() if handled else ""
        assert ("in run_body" in text) is handled
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_note_of_a_call_in_this_process_is_taken_once():
    """It is kept until the worker reads it, and for a thousand calls at most."""
    writer = StackWriter(None, threads=True)
    call = Call("id", "lane", Budget(), TimeLimits(1, 2))

    def note():
        writer.note(call, "hard_time_limit", sys._getframe())

    body.run_body(None, note)
    (stack,) = writer.take("id")
    assert stack.frames[-1].function == "note"
    assert writer.take("id") == ()


def test_a_masked_signal_is_not_sent():
    """Another thread would answer it, with a stack of its own."""
    assert not reader._is_heard(os.getpid()) or SIGNAL is None
