"""The processes of a call: which are found, which are ended, and what they take."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from celery_budgets.execution import children
from celery_budgets.execution.children import Child, began_since, end, found_below, lives
from celery_budgets.execution.memory.pss import ProcessTree
from tests.support.waiting import wait_until

SLEEPS = "import time; time.sleep(60)"


@pytest.fixture
def child():
    """A process of ours, and how it is known."""
    process = subprocess.Popen([sys.executable, "-c", SLEEPS])
    (found,) = (c for c in found_below(os.getpid(), began_since(5)) if
                c.pid == process.pid)  # fmt: skip
    yield found
    process.kill()
    process.wait()


def test_a_process_with_the_pid_of_a_child_is_never_ended(child):
    """It began later: it is another."""
    later = Child(child.pid, child.began - 1)
    assert not lives(later)
    assert end([later]) == 0
    assert lives(child)


def test_without_handles_of_processes_too(child, monkeypatch):
    """As on macOS, and on kernels before 5.3."""
    monkeypatch.delattr("os.pidfd_open", raising=False)
    assert end([Child(child.pid, child.began - 1)]) == 0
    assert end([child]) == 1
    assert not lives(child)


def test_what_began_earlier_is_not_of_the_call(child):
    """Nor is what has ended, which waits for its parent as a zombie."""
    assert child not in found_below(os.getpid(), child.began + 1)
    end([child])
    assert child not in found_below(os.getpid(), 0)


def test_a_tracker_of_multiprocessing_is_spared(child, monkeypatch):
    """It ends by itself, after it has removed what the others leave behind."""
    monkeypatch.setattr(children, "_TRACKERS", (SLEEPS.encode(),))
    # The kernel lets Popen go on a moment before it shows the new arguments.
    wait_until(lambda: psutil.Process(child.pid).cmdline()[-1:] == [SLEEPS], "its arguments show")
    assert end([child]) == 0
    assert lives(child)


def test_what_a_call_may_be_killed_for_was_measured_now(monkeypatch):
    """Between two readings a forked child looks as if all of it were its own."""
    rss = {1: 300, 2: 10}
    monkeypatch.setattr("celery_budgets.execution.memory.rss.rss_of", rss.get)
    monkeypatch.setattr("celery_budgets.execution.memory.pss.pss_of", {1: 180, 2: 120}.get)
    tree = ProcessTree(1, clock=lambda: 0.0, members=lambda: [1, 2])
    assert tree.size(enough=500) == 310
    assert tree.size(enough=100) == 300
    rss[2] = 400
    tree._next_at = 1.0
    assert tree.size(enough=100) == 690
    assert tree.size(enough=100, certain=500) == 300
