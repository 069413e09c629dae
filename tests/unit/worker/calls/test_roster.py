"""What a worker remembers of calls that have ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_budgets.model.outcomes import Outcome
from celery_budgets.worker.calls import roster as module
from celery_budgets.worker.calls.roster import Roster


def delivery(task_id, due_at=1.0, queue="critic"):
    return SimpleNamespace(
        id=task_id, message_key=(task_id, due_at), outcome=None, time_start=None, runs_on=False,
        counted=False, lane=SimpleNamespace(name="critic"),
        task=SimpleNamespace(reject_on_worker_lost=False), delivery_info={"routing_key": queue},
    )  # fmt: skip


@pytest.fixture
def roster(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", lambda: clock.now)
    made = Roster()
    made.clock = clock
    return made


def test_the_end_of_a_call(roster):
    """Of several calls with one id, the last."""
    roster.ended(delivery("a"), Outcome.FAILED)
    roster.clock.now = 120.0
    roster.ended(delivery("a", due_at=2.0), Outcome.SUCCEEDED)
    assert roster.end_of("a") == (Outcome.SUCCEEDED, 120.0)
    assert roster.end_of("b") is None
    assert roster.already_ended(delivery("a")) is Outcome.FAILED


def test_what_was_sent_again_has_not_ended(roster):
    """A retry, and a killed call that runs again; the queue says where it waits."""
    roster.ended(delivery("a"), Outcome.RETRIED)
    assert roster.end_of("a") is None
    assert roster.sent_again("a") == ("a", 100.0, "critic", False)
    roster.ended(delivery("b"), Outcome.MEMORY_LIMIT, again=True)
    assert roster.sent_again("b") is not None
    assert roster.sent_again("c") is None


def test_a_twin_that_waits_is_marked(roster):
    """Its flight record says so."""
    roster.ended(delivery("a"), Outcome.RETRIED, flight=SimpleNamespace(twin=True))
    assert roster.sent_again("a").twin


def test_the_oldest_are_forgotten(roster, monkeypatch):
    """Ten thousand, here two."""
    monkeypatch.setattr(module, "REMEMBERED", 2)
    for task_id in "abc":
        roster.ended(delivery(task_id), Outcome.SUCCEEDED)
    assert [roster.end_of(task_id) is not None for task_id in "abc"] == [False, True, True]
