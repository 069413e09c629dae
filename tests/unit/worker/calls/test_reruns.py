"""Kills counted by message and by signature."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_budgets.model.headers import HEADER_KILLS
from celery_budgets.model.outcomes import Outcome
from celery_budgets.worker.calls import reruns
from celery_budgets.worker.calls.reruns import KillReruns


class Task:
    """Notes what is sent anew."""

    acks_late, max_kills = True, 2

    def __init__(self):
        self.sent = []

    def signature_from_request(self, context, headers, countdown, retries):
        return SimpleNamespace(apply_async=lambda: self.sent.append(headers[HEADER_KILLS]))


def request_of(task, *args, kills=0):
    """A delivery that was killed *kills* times before."""
    return SimpleNamespace(
        id="id", name="task", type="task", task=task, args=args, kwargs={"b": 1, "a": 2},
        request_dict={HEADER_KILLS: kills}, _context=SimpleNamespace(headers=None, retries=0),
    )  # fmt: skip


@pytest.fixture
def clock():
    return SimpleNamespace(now=0.0)


@pytest.fixture
def kill(clock):
    """Kill a call; say whether it was sent anew."""
    table = KillReruns(clock=lambda: clock.now)

    def killed(task, *args, kills=0, outcome=Outcome.MEMORY_LIMIT):
        return table.run_again(request_of(task, *args, kills=kills), RuntimeError(), outcome)

    return killed


def test_one_message_is_final_after_its_kills(kill):
    """max_kills=2: sent anew twice, with the count in its header."""
    task = Task()
    assert [kill(task, 1, kills=n) for n in range(3)] == [True, True, False]
    assert task.sent == [1, 2]


def test_the_same_call_sent_anew_does_not_start_from_zero(kill):
    """Name and arguments are what counts; other arguments are another call."""
    task = Task()
    assert [kill(task, 1) for _ in range(3)] == [True, True, False]
    assert kill(task, 2)


def test_time_limits_count_for_the_message_only(kill):
    """A slow call takes no other call along."""
    task = Task()
    assert all(kill(task, 1, outcome=Outcome.HARD_TIME_LIMIT) for _ in range(5))


def test_an_old_kill_is_forgotten(kill, clock):
    """After an hour without another."""
    task = Task()
    assert [kill(task, 1) for _ in range(2)] == [True, True]
    clock.now = reruns.REMEMBERED_SECONDS
    assert kill(task, 1)


@pytest.mark.parametrize("attribute", [{"acks_late": False}, {"max_kills": 0}])
def test_a_call_that_may_not_run_twice_is_not_sent_anew(kill, attribute):
    """Acknowledged early, or without kills to spare."""
    task = Task()
    vars(task).update(attribute)
    assert not kill(task, 1)


def test_the_table_is_bounded(monkeypatch, kill):
    """The signature that was killed longest ago goes first."""
    monkeypatch.setattr(reruns, "REMEMBERED", 2)
    task = Task()
    for value in (1, 1, 2, 3):
        kill(task, value)
    assert kill(task, 1)
