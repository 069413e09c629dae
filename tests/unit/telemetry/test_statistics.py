"""Statistics: what calls add up to, of one worker and of several."""

from __future__ import annotations

import json

from celery_budgets import Outcome
from celery_budgets.telemetry.statistics import CallStatistics, Statistics


def counted(statistics, lane, task, outcome, seconds, rss=None, *, over=False):
    calls = statistics.of(lane, task)
    calls.outcomes[outcome.value] += 1
    calls.duration.add(seconds)
    calls.wait.add(seconds / 10)
    calls.soft_limit_exceeded += over
    if rss is not None:
        calls.rss_peak.add(rss)


def worker_one():
    statistics = Statistics()
    counted(statistics, "file_read", "fs_read", Outcome.SUCCEEDED, 1.0, 100)
    counted(statistics, "file_read", "fs_read", Outcome.FAILED, 2.0, 300, over=True)
    counted(statistics, "file_read", "fs_stat", Outcome.SUCCEEDED, 3.0)
    return statistics


def worker_two():
    statistics = Statistics()
    counted(statistics, "file_read", "fs_read", Outcome.SUCCEEDED, 4.0, 200)
    counted(statistics, "critic", "fs_read", Outcome.HARD_TIME_LIMIT, 5.0, over=True)
    return statistics


def test_nothing():
    """Before the first call there is nothing, and no RSS of zero."""
    statistics = Statistics()
    assert statistics.lanes == statistics.tasks == {}
    assert statistics.total.total == statistics.total.succeeded == 0
    assert statistics.total.rss_peak_bytes is None
    assert statistics.to_json() == []


def test_by_lane_and_by_task():
    """The same calls, added up both ways; a lane's order does not depend on who called first."""
    merged = worker_two()
    merged.merge(worker_one())
    assert list(merged.lanes) == ["critic", "file_read"]
    assert merged.lanes["file_read"].outcomes == {"succeeded": 3, "failed": 1}
    assert merged.lanes["critic"].outcomes == {"hard_time_limit": 1}
    assert merged.tasks["fs_read"].outcomes == {
        "succeeded": 2, "failed": 1, "hard_time_limit": 1,
    }  # fmt: skip
    assert merged.tasks["fs_stat"].total == 1


def test_workers_add_up():
    """Counts are summed, histograms merged, and the highest RSS is the highest of all."""
    merged = worker_one()
    merged.merge(worker_two())
    everything = merged.total
    assert (everything.total, everything.succeeded) == (5, 3)
    assert everything.soft_limit_exceeded == 2
    assert everything.rss_peak_bytes == 300
    assert (everything.duration.count, everything.duration.total) == (5, 15.0)  # 1+2+3+4+5
    assert everything.wait.total == 1.5


def test_asking_changes_nothing():
    """The sums are made anew: asking twice does not count twice."""
    statistics = worker_one()
    assert statistics.total.total == statistics.total.total == 3
    statistics.lanes["file_read"].outcomes.clear()
    assert statistics.lanes["file_read"].total == 3


def test_merging_leaves_the_other_alone():
    """What was merged into another keeps its own numbers, and does not grow with them."""
    one, two = worker_one(), worker_two()
    one.merge(two)
    counted(one, "critic", "fs_read", Outcome.SUCCEEDED, 9.0)
    assert two.total.total == 2


def test_they_come_back_from_json():
    """The form in which a worker answers has everything."""
    statistics = worker_one()
    rows = json.loads(json.dumps(statistics.to_json(), allow_nan=False))
    assert Statistics.from_json(rows).to_json() == statistics.to_json()
    empty = json.loads(json.dumps(CallStatistics().to_json(), allow_nan=False))
    assert CallStatistics.from_json(empty).total == 0


def test_silent_workers_are_named():
    """Who did not answer is part of the answer."""
    assert Statistics(silent=["a@host"]).silent == ("a@host",)
