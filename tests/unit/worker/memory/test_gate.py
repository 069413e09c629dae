"""The gate by itself: when it closes, opens, lets one call through or gives memory back."""

from __future__ import annotations

import logging

import pytest

from celery_budgets.worker.memory.gate import Decision, Gate, Gauge

LIMIT, RESUME = 500, 400
MAX_PAUSE = 60.0


class Worker:
    """A gate over one number, with a clock that is moved by hand."""

    def __init__(self, **others):
        self.now, self.used = 0.0, 0
        gauge = Gauge("max_worker_rss", LIMIT, RESUME, lambda: self.used)
        self.gate = Gate([gauge, *others.get("gauges", ())], MAX_PAUSE, clock=lambda: self.now)

    def look(self, used, running=0, after=1.0):
        self.used = used
        self.now += after
        return self.gate.decide(self.gate.observe(), running)


@pytest.fixture
def worker():
    return Worker()


@pytest.fixture
def busy():
    """A worker that has run a call, and whose gate is closed."""
    worker = Worker()
    worker.gate.fresh = False
    assert worker.look(501) is Decision.CLOSE
    return worker


def test_it_closes_above_the_limit_and_opens_below_the_lower_level(worker):
    """At the limit it is still open, and between the levels it stays as it is."""
    sizes = [400, 500, 501, 450, 401, 400, 450]
    decisions = [worker.look(size, running=1) for size in sizes]
    keep = Decision.KEEP
    assert decisions == [keep, keep, Decision.CLOSE, keep, keep, Decision.OPEN, keep]


def test_each_change_is_logged_once_with_both_numbers(worker, caplog):
    """However long it stays closed."""
    caplog.set_level(logging.WARNING, "celery_budgets")
    for size in (501, 501, 501, 400, 400):
        worker.look(size * 1024, running=1)
    worker.gate.gauges = (Gauge("max_rss", LIMIT * 1024, RESUME * 1024, lambda: worker.used),)
    caplog.clear()
    worker.gate.by = None
    for size in (501, 501, 450, 400, 400):
        worker.look(size * 1024, running=1)
    closed, opened = (record.getMessage() for record in caplog.records)
    assert closed.startswith("budgets.gate_closed by=max_rss used=501 KiB limit=500 KiB")
    assert opened.startswith("budgets.gate_opened by=max_rss used=400 KiB resume=400 KiB")


def test_every_gauge_must_be_low_before_it_opens():
    """The one that closed it is not enough."""
    second = {"used": 0}
    gauge = Gauge("max_rss", 100, 50, lambda: second["used"])
    worker = Worker(gauges=[gauge])
    assert worker.look(501, running=1) is Decision.CLOSE
    second["used"] = 60
    assert worker.look(100, running=1) is Decision.KEEP
    second["used"] = 50
    assert worker.look(100, running=1) is Decision.OPEN


def test_while_calls_run_it_waits(busy):
    """The pause that counts is the one with nothing running."""
    assert busy.look(501, running=1, after=1000) is Decision.KEEP
    assert busy.look(501) is Decision.KEEP
    assert busy.look(501, after=MAX_PAUSE - 1) is Decision.KEEP
    assert busy.look(501, running=1) is Decision.KEEP
    assert busy.look(501) is Decision.KEEP
    assert busy.look(501, after=MAX_PAUSE - 1) is Decision.KEEP


def test_after_a_long_pause_the_processes_are_renewed(busy):
    """Only they can hold the memory when nothing runs."""
    busy.look(501)
    assert busy.look(501, after=MAX_PAUSE) is Decision.RENEW
    busy.gate.fresh = True
    assert busy.look(400) is Decision.OPEN


def test_where_that_did_not_help_calls_go_through_one_at_a_time(busy):
    """And the processes that they filled are renewed again after another long pause."""
    busy.look(501)
    assert busy.look(501, after=MAX_PAUSE) is Decision.RENEW
    busy.gate.fresh = True
    assert busy.look(501) is Decision.LET_ONE
    busy.gate.fresh = False
    assert busy.look(501, running=1) is Decision.KEEP
    assert busy.look(501) is Decision.LET_ONE
    assert busy.look(501, after=MAX_PAUSE) is Decision.RENEW


def test_processes_in_which_nothing_ran_are_not_renewed(worker):
    """Their memory is what a worker takes: one call goes through after the pause, and the next."""
    assert worker.look(501) is Decision.CLOSE
    assert worker.look(501) is Decision.KEEP
    assert worker.look(501, after=MAX_PAUSE) is Decision.LET_ONE


def test_it_says_its_state(worker):
    """Open, or paused since when and by what, with the numbers."""
    worker.look(300)
    assert worker.gate.to_json()["state"] == "open"
    worker.look(501)
    state = worker.gate.to_json()
    assert state["state"] == "paused"
    assert state["by"] == {"name": "max_worker_rss", "used": 501, "limit": LIMIT}
    assert state["gauges"] == {"max_worker_rss": {"used": 501, "limit": LIMIT, "resume": RESUME}}
