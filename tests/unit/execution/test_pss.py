"""The memory of a process with everything below it, counted once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from celery_budgets.execution.memory import pss as tree_module
from celery_budgets.execution.memory import rss as memory
from celery_budgets.execution.memory.pss import ProcessTree, processes_below, pss_of
from celery_budgets.units import MIB

FAMILY = """
import os, sys, time
block = bytearray(b"1") * (64 << 20)
begun, begins = os.pipe()
for _ in range(4):
    if not os.fork():
        os.write(begins, b"1")
        time.sleep(60)
        os._exit(0)
for _ in range(4):  # one that begins to run grows by megabytes
    os.read(begun, 1)
print("ready", flush=True)
sys.stdin.read()
os.killpg(0, 9)
"""


@pytest.fixture
def family():
    """A process of 64 MiB with four forked children, which share them."""
    process = subprocess.Popen(
        [sys.executable, "-c", FAMILY],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.communicate()


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="no PSS here")
def test_shared_pages_count_once(family):
    """Five processes of 64 MiB by RSS are 64 MiB in all."""
    pids = processes_below(family.pid)
    assert len(pids) == 5
    total = sum(memory.rss_of(pid) for pid in pids)
    size = ProcessTree(family.pid).size()
    assert total > 5 * 64 * MIB
    assert 64 * MIB < size < 64 * MIB + 5 * 16 * MIB


def test_pss_is_never_more_than_rss(family):
    """Which is why the sum of RSS can be an answer that is good enough."""
    for pid in processes_below(family.pid):
        assert pss_of(pid) <= memory.rss_of(pid)


def test_a_small_tree_is_measured_by_rss_alone(family):
    """Below what is asked for, PSS is not read."""
    total = sum(memory.rss_of(pid) for pid in processes_below(family.pid))
    assert ProcessTree(family.pid).size(enough=2 * total) == pytest.approx(total, rel=0.1)


def test_reading_takes_a_small_share_of_the_time(family):
    """What took 10 ms is not read again for 2.5 s; until then the last answer holds."""
    instants = iter([0.0, 0.010, 0.5, 2.4, 2.6, 2.61])
    tree = ProcessTree(family.pid, clock=lambda: next(instants))
    first = tree.size()
    family_is_gone = ProcessTree(family.pid)
    # Growth since then counts at once: a process that lives may take a page or two.
    assert tree.size() == pytest.approx(first, rel=0.05)
    assert tree.size() == pytest.approx(first, rel=0.05)
    assert tree.size() == pytest.approx(first, rel=0.2)
    assert family_is_gone.size() > 0


def test_a_process_that_is_gone_has_no_size():
    """No error: processes end while they are looked at."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert pss_of(done.pid) is None
    assert ProcessTree(done.pid).size() == 0


def test_between_two_readings_growth_counts_at_once(monkeypatch):
    """What came since the last reading is seen, and no answer is above the sum of RSS."""
    sizes = {"rss": 500, "pss": 300}
    monkeypatch.setattr(tree_module, "processes_below", lambda pid: [pid])
    monkeypatch.setattr(tree_module, "pss_of", lambda pid: sizes["pss"])
    monkeypatch.setattr(tree_module.memory, "rss_of", lambda pid: sizes["rss"])
    instants = iter([0.0, 1.0, 2.0, 3.0, 4.0])  # reading took 1 s: the next one is far off
    tree = tree_module.ProcessTree(1, clock=lambda: next(instants))
    assert tree.size() == 300
    sizes["rss"] = 900
    assert tree.size() == 700  # 300 + 400
    sizes["rss"] = 100
    assert tree.size() == 0  # more was given back than the tree had of its own


def test_what_is_given_back_during_a_reading_and_taken_again_counts(monkeypatch):
    """Else a tree above its limit would seem small until the next reading, a minute later."""
    sizes = {"rss": 500}

    def read_slowly(pid):
        sizes["rss"] = 150  # it has just let go of what it had
        return 140

    monkeypatch.setattr(tree_module, "processes_below", lambda pid: [pid])
    monkeypatch.setattr(tree_module, "pss_of", read_slowly)
    monkeypatch.setattr(tree_module.memory, "rss_of", lambda pid: sizes["rss"])
    instants = iter([0.0, 0.0, 0.3, 1.0])
    tree = ProcessTree(1, clock=lambda: next(instants))
    assert tree.size() == 140
    sizes["rss"] = 500
    assert tree.size() == 490
