"""Calls that run far longer than their task usually does: told of once, with their stack."""

from __future__ import annotations

import logging

import pytest

from celery_budgets.model.stack import Frame, Stack
from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.pool.slow_calls import LEAST_CALLS, SlowCalls


class Request:
    """A running call of the worker."""

    def __init__(self, task_id, started_at):
        self.id, self.time_start = task_id, started_at
        self.type, self.hostname, self.lane = "tools.fetch", "w@host", self
        self.name = "lane"


class BlackBox:
    """One that always finds the same place."""

    def __init__(self):
        self.asked = []

    def now(self, request):
        self.asked.append(request.id)
        return Stack((Frame("/srv/client.py", 88, "get"),), "asked")


def roster_with(ended, seconds):
    """Return the roster of a worker in which *ended* calls took *seconds* each."""
    roster = Roster()
    for _ in range(ended):
        roster.tally._statistics.add({
            "lane": "lane", "task": "tools.fetch", "outcome": "succeeded", "seconds": seconds,
            "wait_seconds": 0.0, "soft_limit_exceeded": False, "rss_peak_bytes": None,
        })  # fmt: skip
    return roster


@pytest.mark.parametrize(
    ("ended", "p99", "running", "slow"),
    [
        (LEAST_CALLS, 2.0, 21.0, True),
        (LEAST_CALLS, 2.0, 19.0, False),  # not ten times the p99
        (LEAST_CALLS, 0.1, 9.0, False),  # not 10 s
        (LEAST_CALLS - 1, 0.1, 60.0, False),  # too few have ended
    ],
)
def test_what_is_slow(caplog, ended, p99, running, slow):
    """Ten times the p99 and 10 s, once 100 calls have ended; each is told of once."""
    caplog.set_level(logging.WARNING, "celery_budgets")
    roster, box = roster_with(ended, p99), BlackBox()
    request = Request("one", 1000.0)
    roster.in_hand["one", None] = request
    calls = SlowCalls(roster, box, clock=lambda: 1000.0 + running)
    calls.look()
    calls.look()
    told = [record for record in caplog.records if "budgets.call_slow" in record.getMessage()]
    assert (len(told), box.asked) == ((1, ["one"]) if slow else (0, []))
    if slow:
        assert told[0].budgets["stack"] == [
            {"file": "/srv/client.py", "line": 88, "function": "get"}
        ]
        assert "in=client.py:88 get" in told[0].getMessage()
