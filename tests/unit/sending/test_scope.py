"""Request scopes in the process that opens them: what they write into messages and refuse."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from time import time
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.worker import state as worker_state
from celery.worker.consumer.mingle import Mingle

from celery_budgets import BudgetedTask, Budgets, RejectedByBudget
from celery_budgets.sending.scope import paths_above
from celery_budgets.worker.calls import scopes
from celery_budgets.worker.calls.scopes import Scopes


@pytest.fixture
def app():
    return Celery("scope", broker="memory://", backend="cache+memory://")


@pytest.fixture
def budgets(app):
    return Budgets(app)


@pytest.fixture
def tool(app, budgets):
    @app.task(base=BudgetedTask, name="tool")
    def tool(): ...

    return tool


def scopes_of(published):
    return [headers.get("budgets_scope") for headers in published]


def test_all_that_is_sent_inside_carries_its_path(app, budgets, tool, published):
    """Also by name, and by canvas; outside of it nothing does."""
    tool.delay()
    with budgets.scope("req-42") as scope:
        tool.delay()
        app.send_task("elsewhere")
        tool.s().apply_async()
    tool.delay()
    assert scopes_of(published) == [None, "req-42", "req-42", "req-42", None]
    assert scope.path == "req-42"
    assert scope.sent == 2  # a mere name is not counted


def test_a_scope_without_a_name_gets_one_of_its_own(budgets):
    assert budgets.scope().name != budgets.scope().name


@pytest.mark.parametrize("name", ["", "a/b", 7, "x" * 201])
def test_a_name_is_text_without_a_slash(budgets, name):
    with pytest.raises(ValueError, match="must be text of 1 to 200 characters"):
        budgets.scope(name)


@pytest.mark.parametrize("limits", [{"max_calls": -1}, {"max_calls": True}, {"timeout": -1}])
def test_limits_make_sense(budgets, limits):
    with pytest.raises(ValueError, match=r"max_calls|deadline"):
        budgets.scope("req", **limits)


def test_one_call_too_many_is_rejected_where_it_is_sent(budgets, tool, published):
    with budgets.scope("req", max_calls=2) as scope:
        tool.delay()
        tool.delay()
        with pytest.raises(RejectedByBudget) as caught:
            tool.delay()
    assert caught.value.reason == "max_calls"
    assert scope.sent == len(published) == 2


def test_after_its_time_nothing_is_sent(budgets, tool, published):
    with budgets.scope("req", timeout=0) as scope, pytest.raises(RejectedByBudget) as caught:
        tool.delay()
    assert (caught.value.reason, scope.remaining(), published) == ("scope_timeout", 0.0, [])


def test_its_time_cuts_the_deadline_of_each_call(budgets, tool, published):
    """Soft at its end, hard at 1.5 times; an earlier one of the call's stays."""
    began = time()
    with budgets.scope("req", timeout=100) as scope:
        assert 99 < scope.remaining() <= 100
        tool.delay()
        tool.apply_async(deadline=10)
        tool.apply_async(deadline=None)
    soft, hard = published[0]["budgets_deadline"]
    assert began + 100 <= soft <= time() + 100
    assert began + 150 <= hard <= time() + 150
    assert published[1]["budgets_deadline"][0] < began + 11
    assert published[2]["budgets_deadline"] == [soft, hard]


def test_a_scope_inside_another_belongs_to_both(budgets, tool, published):
    """Path, count and the earlier of both ends."""
    with budgets.scope("req", max_calls=3, timeout=10) as outer:
        tool.delay()
        with budgets.scope("part", max_calls=5, timeout=1000) as inner:
            tool.delay()
            tool.delay()
            with pytest.raises(RejectedByBudget):
                tool.delay()
        assert inner.remaining() <= 10
    assert scopes_of(published) == ["req", "req/part", "req/part"]
    assert (outer.sent, inner.sent) == (3, 2)


def test_coroutines_and_copied_contexts_are_inside_and_plain_threads_are_not(
    budgets, tool, published
):
    async def request(name):
        with budgets.scope(name):
            await asyncio.sleep(0)
            tool.delay()

    async def two():
        await asyncio.gather(request("a"), request("b"))

    asyncio.run(two())
    with budgets.scope("c"):
        context = contextvars.copy_context()
        for target in (tool.delay, lambda: context.run(tool.delay)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert sorted(scopes_of(published)[:2]) == ["a", "b"]
    assert scopes_of(published)[2:] == [None, "c"]


def test_one_scope_may_be_entered_by_several_coroutines(budgets, tool, published):
    """They leave it in the order in which they came; afterwards nothing is inside."""
    scope = budgets.scope("req")

    async def part(entered, leave):
        with scope:
            entered.set()
            await leave.wait()
            tool.delay()
        tool.delay()

    async def two():
        entered, leave = [asyncio.Event(), asyncio.Event()], [asyncio.Event(), asyncio.Event()]
        parts = [asyncio.create_task(part(*pair)) for pair in zip(entered, leave, strict=True)]
        for came in entered:
            await came.wait()
        for task, let in zip(parts, leave, strict=True):
            let.set()
            await task

    asyncio.run(two())
    tool.delay()
    assert scopes_of(published) == ["req", None, "req", None, None]


def test_a_cancelled_scope_sends_nothing_more(budgets, tool, published):
    with budgets.scope("req") as scope, budgets.scope("part"):
        scope.cancel()
        with pytest.raises(RejectedByBudget) as caught:
            tool.delay()
    assert (caught.value.reason, published) == ("scope_cancelled", [])


def test_paths_above():
    assert list(paths_above("a/b/c")) == ["a/b/c", "a/b", "a"]


def facts(scope, outcome="succeeded"):
    return {
        "scope": scope, "lane": "l", "task": "t", "outcome": outcome, "seconds": 1.0,
        "wait_seconds": 0.0, "soft_limit_exceeded": False, "rss_peak_bytes": None,
    }  # fmt: skip


def test_a_worker_adds_up_a_scope_with_those_inside_of_it():
    table = Scopes()
    for path in ("a", "a/b", "ab", "a/b/c", None):
        table.add(facts(path))
    assert table.statistics("a").total.total == 3
    assert table.statistics("a/b").total.total == 2
    assert table.statistics("nothing").total.total == 0


def test_a_worker_remembers_the_scopes_whose_calls_ended_last():
    """As many as REMEMBERED says: 256."""
    table = Scopes()
    for number in range(scopes.REMEMBERED):
        table.add(facts(f"s{number}"))
    table.add(facts("s0"))
    table.add(facts("new"))
    assert table.statistics("s0").total.total == 2
    assert table.statistics("s1").total.total == 0
    assert len(table._by_path) == scopes.REMEMBERED == 256


def test_a_cancelled_scope_is_among_what_workers_tell_each_other():
    """Celery's mingle hands on the revoked ids, and a state database keeps them."""
    scopes.cancel("req-77", None, running=False)
    try:
        told = list(worker_state.revoked)
        worker_state.revoked.clear()
        assert "budgets-scope:req-77" in told
        consumer = SimpleNamespace(controller=SimpleNamespace(state=worker_state))
        Mingle(consumer, without_mingle=True).on_revoked_received(consumer, told)
        assert "budgets-scope:req-77" in worker_state.revoked
    finally:
        worker_state.revoked.clear()
