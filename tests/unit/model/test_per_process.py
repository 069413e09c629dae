"""Objects of which each process makes its own: once, and anew after a fork."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from celery_budgets.model.per_process import OncePerProcess, PerProcess
from tests.support.places import ROOT


class App:
    """Something that has attributes."""


#: A program of its own: to fork the process of the tests would share their connections.
FORKING = """
import os, sys, threading
from celery_budgets.model.per_process import OncePerProcess, PerProcess
from celery_budgets.execution.flight.recorder import recorder
from celery_budgets.execution.limits.watchdog import watchdog

def child_says(look):
    pid = os.fork()
    if not pid:
        os._exit(0 if look() else 1)
    return os.waitpid(pid, 0)[1] == 0
"""
OF_EACH_PROCESS = """
before = made()
assert made() is before
assert child_says(lambda: made() is not before)
assert made() is before
"""
IN_THE_MIDDLE = """
making, forked = threading.Event(), threading.Event()

def make():
    if threading.current_thread() is not threading.main_thread():
        making.set()
        assert forked.wait(20)
    return object()

single = OncePerProcess(make)
maker = threading.Thread(target=single)
maker.start()
assert making.wait(10)
assert child_says(lambda: single() is not None)
forked.set()
maker.join(10)
"""


def runs(program):
    """Run a program that forks; its assertions are the test's."""
    ended = subprocess.run(
        [sys.executable, "-c", FORKING + program], cwd=ROOT, timeout=60, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("kind", ["one", "by app"])
def test_two_threads_get_the_same(kind):
    """Whichever is first makes it; the other one waits for that."""
    both_ask, app = threading.Barrier(2), App()
    made, got = [], []

    def make():
        time.sleep(0.1)  # long enough for the other thread to be here too, if it were let in
        made.append(object())
        return made[-1]

    single, by_app = OncePerProcess(make), PerProcess(make)

    def ask():
        both_ask.wait(timeout=10)
        got.append(single() if kind == "one" else by_app.of(app))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert got == made * 2
    assert len(made) == 1


@pytest.mark.parametrize(
    "made",
    ["made = watchdog", "made = recorder", "class App: pass\n"
     "by, app = PerProcess(object), App()\nmade = lambda: by.of(app)"],
    ids=["watchdog", "recorder", "by app"],
)  # fmt: skip
def test_a_forked_process_gets_its_own(made):
    """A thread does not survive a fork, so neither may the watchdog; nor a file by its pid."""
    runs(f"{made}\n{OF_EACH_PROCESS}")


def test_a_fork_in_the_middle_of_making_one():
    """The lock that another thread holds just then is not that of the child."""
    runs(IN_THE_MIDDLE)


OF_THREADS = """
from celery_budgets.execution.limits import async_exception as thread_exception
from celery_budgets.execution.limits.async_exception import shielded

locked, forked = threading.Event(), threading.Event()

def keep():
    with shielded(), thread_exception._lock():
        locked.set()
        assert forked.wait(20)

def enter():
    with shielded():
        pass
    return not thread_exception._shielded

keeper = threading.Thread(target=keep)
keeper.start()
assert locked.wait(10)
assert child_says(lambda: threading.Timer(10, os._exit, (1,)).start() or enter() or os._exit(2))
forked.set()
keeper.join(10)
"""


def test_a_fork_while_another_thread_holds_limits_off():
    """Its lock and its shield are not those of the child, whose threads may be named alike."""
    runs(OF_THREADS)
