"""The queue of a lane, from what several workers answer."""

from __future__ import annotations

import pytest

from celery_budgets.telemetry.queues import LaneQueue


def facts(messages=100, oldest=9.0, *, estimated=False, trend=-1.0, age=1.0, departures=3.0):
    return {
        "messages": messages, "oldest": oldest, "estimated": estimated, "trend": trend,
        "age": age, "departures": departures,
    }  # fmt: skip


def test_departures_add_up_and_the_latest_reading_counts():
    """3 + 2 a second were started, and it is 1 a second less: 4 a second came; 100 s are left."""
    queue = LaneQueue.of([facts(), facts(120, 8.0, age=4.0, departures=2.0)])
    assert (queue.backlog, queue.oldest) == (100, 9.0)
    assert (queue.departures, queue.arrivals, queue.drain) == (5.0, 4.0, 100.0)
    assert not queue.grows


@pytest.mark.parametrize("trend", [0.0, 2.0])
def test_a_queue_that_grows_does_not_drain(trend):
    """Nor does one that stays as it is."""
    queue = LaneQueue.of([facts(trend=trend)])
    assert queue.drain is None
    assert queue.grows


def test_an_empty_queue_is_drained():
    """Whatever its rates."""
    queue = LaneQueue.of([facts(0, 0.0, trend=None)])
    assert (queue.drain, queue.grows, queue.arrivals) == (0.0, False, None)


@pytest.mark.parametrize("answers", [[], [{}], [facts(None, None, trend=None, age=None)]])
def test_what_no_worker_knows_is_unknown(answers):
    """Also of a worker of an earlier version."""
    queue = LaneQueue.of(answers)
    assert (queue.backlog, queue.oldest, queue.arrivals, queue.drain) == (None, None, None, None)
    assert not queue.grows


def test_an_estimate_is_that_of_the_worker_that_has_started_the_latest():
    """Each estimates by its own calls; the least is nearest."""
    answers = [facts(oldest=30.0, estimated=True), facts(oldest=9.0, estimated=True, age=3.0)]
    answers.append(facts(oldest=None, estimated=True, age=0.5))
    queue = LaneQueue.of(answers)
    assert (queue.oldest, queue.oldest_estimated) == (9.0, True)
