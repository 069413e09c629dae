"""Two hours of a lane, by a clock that is set."""

from __future__ import annotations

import pytest

from celery_budgets.model.workers.history import STEP_SECONDS, STEPS
from celery_budgets.sending.status.history import joined
from celery_budgets.telemetry.statistics import CallStatistics
from celery_budgets.worker.backlog.history import History, Moment


class Lane:
    """A worker of one lane, whose time and calls are set."""

    def __init__(self) -> None:
        self.now = 1000.0 * STEP_SECONDS
        self.calls = CallStatistics()
        self.moment = Moment(0, 4, None, paused=False)
        self.history = History(
            ["lane"], lambda: {"lane": self.calls}, lambda _: self.moment, lambda: 100,
            clock=lambda: self.now,
        )  # fmt: skip

    def end(self, outcome: str, seconds: float = 1.0) -> None:
        self.calls.outcomes[outcome] += 1
        self.calls.duration.add(seconds)

    def step(self, count: int = 1) -> None:
        self.history.look()
        self.now += count * STEP_SECONDS
        self.history.look()

    def columns(self, steps: int = 3, every: int = 1) -> dict[str, list[float]]:
        return self.history.to_json(steps, every)["lanes"]["lane"]


@pytest.fixture
def lane() -> Lane:
    return Lane()


def test_each_step_has_what_ended_in_it(lane):
    """With the seconds that it took, and the highest of the levels."""
    lane.end("succeeded", 2.0)
    lane.moment = Moment(3, 4, 7, paused=True)
    lane.history.look()
    lane.moment = Moment(1, 4, 2, paused=False)
    lane.step()
    lane.end("hard_time_limit")
    lane.step()
    assert lane.columns(2) == {
        "succeeded": [1, 0], "hard_time_limit": [0, 1], "seconds": [2, 1],
        "active": [3, 1], "limit": [4, 4], "backlog": [8, 3], "rss": [100, 100], "paused": [1, 0],
    }  # fmt: skip
    assert lane.history.hour("lane") == {"succeeded": 1, "hard_time_limit": 1}


def test_steps_that_nobody_saw_are_empty(lane):
    """A worker whose event loop was blocked: it does not invent anything."""
    lane.end("succeeded")
    lane.step(3)
    assert lane.columns(3)["succeeded"] == [1, 0, 0]
    assert lane.columns(3)["limit"] == [4, 0, 0]


def test_an_hour_and_two_hours_are_forgotten(lane):
    """In turn; a long stop leaves nothing."""
    lane.end("succeeded")
    lane.step(STEPS // 2)
    assert lane.history.hour("lane") == {"succeeded": 1}
    lane.step()
    assert lane.history.hour("lane") == {}
    assert sum(lane.columns(STEPS)["succeeded"]) == 1
    lane.step(3 * STEPS)
    assert "succeeded" not in lane.columns(STEPS)


def test_numbers_of_several_steps_are_one(lane):
    """Counts are added, of levels the highest is taken; at bounds that all workers share."""
    for _ in range(12):
        lane.end("succeeded")
        lane.step()
    assert lane.columns(12, 6)["succeeded"][-1] == 6
    assert lane.history.to_json(12, 6)["end"] % (6 * STEP_SECONDS) == 0


def test_the_histories_of_all_workers_are_one():
    """Added up by time, also of one that is a step behind; a backlog is the same for all."""
    one = {"end": 60, "lanes": {"lane": {"succeeded": [1, 2], "backlog": [5, 0], "active": [1, 1]}}}
    other = {"end": 30, "lanes": {"lane": {"succeeded": [10], "backlog": [4], "active": [2]}}}
    whole = joined([one, other])
    assert (whole["end"], whole["step"]) == (60, 30)
    lane = whole["lanes"]["lane"]
    assert lane["succeeded"][-2:] == [11, 2]
    assert lane["active"][-2:] == [3, 1]
    assert lane["backlog"][-2:] == [4, None]
    assert joined([]) == {"end": 0, "step": 30, "lanes": {}}
