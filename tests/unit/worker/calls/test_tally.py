"""Calls that have ended are counted a few at a time, and nobody can tell."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from time import time
from types import SimpleNamespace

import pytest

from celery_budgets import Outcome
from celery_budgets.execution.call import Call
from celery_budgets.execution.flight.record import pack, with_its_end
from celery_budgets.model.budget import Budget, TimeLimits
from celery_budgets.worker.calls.ended_call import EndedCall, facts_of
from celery_budgets.worker.calls.tally import LONGEST, MOST, Tally


class Later:
    """An event loop's call_later, whose time comes when a test says so."""

    def __init__(self) -> None:
        self.armed: list[tuple[float, object]] = []

    def __call__(self, seconds, function):
        self.armed.append((seconds, function))

    def comes(self):
        for _, function in self.armed:
            function()
        self.armed.clear()


@pytest.fixture
def failures():
    return []


@pytest.fixture
def tally(failures):
    """One of a worker with an event loop, and what it has told."""
    made = Tally(lambda: failures.append(1))
    made.call_later = Later()
    made.told = []
    made.listeners.append(made.told.append)
    return made


def ended(task_id="some-id", outcome=Outcome.SUCCEEDED, **changes):
    facts = {
        "outcome": outcome, "ended_at": 1_000_000.5, "started_at": 1_000_000.0, "soft": 300.0,
        "lane": "critic", "task": "critics_run", "task_id": task_id, "worker": "w@host",
        "due_at": 999_999.0, "scope": None, "record": None,
    }  # fmt: skip
    return EndedCall(**(facts | changes))


def outcomes(tally):
    return tally.statistics().total.outcomes


def test_successes_are_counted_together(tally):
    """In one go, once a tenth of a second is over: one timer for all of them."""
    for number in range(5):
        tally.note(ended(f"id-{number}"))
    assert not tally.told
    assert [seconds for seconds, _ in tally.call_later.armed] == [LONGEST]
    tally.call_later.comes()
    assert [facts["task_id"] for facts in tally.told] == [f"id-{number}" for number in range(5)]


def test_many_successes_do_not_wait_for_the_timer(tally):
    """No more are kept than that, however fast they come."""
    for number in range(MOST):
        tally.note(ended(f"id-{number}"))
    assert len(tally.told) == MOST


def test_whoever_asks_is_told_of_all(tally):
    """Statistics, and those of a scope, are those of now."""
    tally.note(ended(scope="request-1"))
    assert outcomes(tally) == {"succeeded": 1}
    tally.note(ended(scope="request-1"))
    assert tally.of_scope("request-1").total.total == 2
    assert len(tally.told) == 2


@pytest.mark.parametrize("outcome", [each for each in Outcome if each is not Outcome.SUCCEEDED])
def test_what_went_wrong_is_told_at_once(tally, outcome):
    """After the successes before it, so that the order stays."""
    tally.note(ended("first"))
    tally.note(ended("second", outcome))
    assert [facts["task_id"] for facts in tally.told] == ["first", "second"]


def test_without_an_event_loop_each_call_is_told_at_once(tally):
    """As on pools whose calls run in the worker, and in a worker that stops."""
    tally.call_later = None
    tally.note(ended())
    assert len(tally.told) == 1


def test_a_timer_that_is_lost_loses_no_call(tally):
    """Celery drops all timers when it connects anew; the look of each second counts then."""
    tally.note(ended("first"))
    tally.call_later.armed.clear()
    tally.note(ended("second"))
    tally.count_noted()
    assert outcomes(tally) == {"succeeded": 2}
    tally.note(ended("third"))
    assert tally.call_later.armed, "and the next call has a timer again"


def test_calls_that_end_while_others_are_counted_are_counted_once(tally):
    """Threads that ask for metrics count too, beside the event loop."""
    left = threading.Event()
    asked = Counter()

    def ask():
        while not left.is_set():
            asked[outcomes(tally)["succeeded"]] += 1

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    for number in range(20_000):
        tally.note(ended(str(number)))
    left.set()
    for thread in asking:
        thread.join()
    tally.count_noted()
    assert outcomes(tally) == {"succeeded": 20_000}
    assert sorted(int(facts["task_id"]) for facts in tally.told) == list(range(20_000))
    assert asked


def test_a_call_that_cannot_be_counted_spoils_no_other(tally, failures, caplog):
    """A producer may stamp its message with anything."""
    tally.note(ended("good"))
    tally.note(ended("bad", due_at="yesterday"))
    tally.note(ended("good too"))
    assert outcomes(tally) == {"succeeded": 2}
    assert len(failures) == 1
    assert "budgets.telemetry_failed task_id=bad" in caplog.text


def test_a_listener_that_fails_spoils_no_other_call(tally, failures):
    tally.listeners.insert(0, lambda facts: 1 / (facts["task_id"] != "bad"))
    for task_id in ("bad", "good"):
        tally.note(ended(task_id))
    tally.count_noted()
    assert (len(failures), [facts["task_id"] for facts in tally.told]) == (1, ["good"])


def test_a_record_has_the_time_at_which_its_call_ended(tally, caplog):
    """Not the one at which it was counted."""
    caplog.set_level(logging.INFO, "celery_budgets")
    tally.note(ended(ended_at=1_000_000.25))
    tally.count_noted()
    (record,) = caplog.records
    assert (record.created, record.msecs) == (1_000_000.25, 250.0)


def test_a_record_is_read_when_its_call_is_counted():
    """A copy of it: the process may have written of its next call meanwhile."""
    call = Call("some-id", "critic", Budget(), TimeLimits(10, 15), rss=100)
    call.close(call.started_mono + 2.5, 300)
    record = with_its_end(pack(call, b"\1" * 16), call)
    facts = facts_of(ended(record=record))
    assert (facts["seconds"], facts["rss_before_bytes"], facts["rss_peak_bytes"]) == (2.5, 100, 300)
    assert facts["trace_id"] == "01" * 16
    other = facts_of(ended("another-id", record=record))
    assert (other["seconds"], other["rss_peak_bytes"]) == (0.5, None), "as the worker saw it"


def test_what_is_kept_of_a_call_are_not_its_arguments():
    """They may be large, and nobody needs them once it has ended."""
    request = SimpleNamespace(
        _request_dict={"args": [b"x" * 1_000_000], "budgets_due_at": 1.0, "budgets_scope": "s"},
        time_start=2.0, limits=TimeLimits(10, 15), lane=SimpleNamespace(name="critic"),
        _type="critics_run", id="some-id", _hostname="w@host", stacks=(),
    )  # fmt: skip
    kept = EndedCall.of(request, Outcome.SUCCEEDED, None)
    assert request._request_dict not in kept
    assert (kept.due_at, kept.scope, kept.started_at, kept.soft) == (1.0, "s", 2.0, 10)
    assert time() - 5 < kept.ended_at <= time()
