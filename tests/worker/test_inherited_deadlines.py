"""Deadlines with real workers: what a call passes on, and what becomes of one that is too late."""

from __future__ import annotations

import pytest
from celery import chain

from celery_budgets import RejectedByBudget
from tests.support.apps import Servers, fresh_app
from tests.support.marks import ON_RABBITMQ, first_of
from tests.support.waiting import wait_until
from tests.support.workers import Workers
from tests.worker.deadlines_app import OWN

APP = "tests.worker.deadlines_app"
QUEUES = ("-Q", "lane,early", "-c", "4")
#: What all has to be done in, seconds.
IN_ALL = 5.0


@pytest.fixture(scope="module", params=["redis", pytest.param("rabbitmq", marks=ON_RABBITMQ)])
def servers_in_turn(request, redis_database):
    """Each broker in turn; results are in Redis."""
    redis = redis_database()
    if request.param == "redis":
        return Servers(broker=redis, backend=redis)
    return Servers(broker=request.getfixturevalue("rabbitmq_server"), backend=redis)


@pytest.fixture(scope="module", params=first_of("prefork", "threads"))
def tools(request, servers_in_turn, tmp_path_factory):
    """The app, and a worker of each pool in turn."""
    workers = Workers(servers_in_turn, tmp_path_factory.mktemp("workers"))
    with fresh_app(APP, servers_in_turn, {}) as loaded:
        loaded.worker = workers(APP, *QUEUES, "-P", request.param)
        yield loaded
        workers.close()


def told(tools, task_id):
    """Return what a call said was left to it.

    Asked again and again: before Celery 5.7 only one of several results of the same id hears of it.
    """
    result = tools.app.AsyncResult(task_id)
    wait_until(result.ready, "it has said so", timeout=30, detail=tools.worker.tail)
    return result.get()


def test_a_chain_shares_one_deadline(tools):
    """Three steps with 5 s in all: each has what those before it have left."""
    steps = chain(tools.step.s([], 0.5), tools.step.s(0.5), tools.step.s(0))
    first, second, third = steps.apply_async(deadline=IN_ALL).get(timeout=30)
    for number, (soft, hard) in enumerate((first, second, third)):
        assert 0 < soft <= IN_ALL - 0.5 * number, tools.worker.tail()
        assert soft < hard <= 1.5 * IN_ALL - 0.5 * number


def test_what_is_too_late_does_not_start(tools):
    """Its caller gets the reason, and so do the statistics."""
    tools.app.backend.client.delete("ran")
    late = chain(tools.overdue.s(1.3), tools.telling.s()).apply_async(deadline=1.0)
    with pytest.raises(RejectedByBudget) as caught:
        late.get(timeout=30)
    assert (caught.value.reason, caught.value.lane) == ("deadline", "lane")
    assert not tools.app.backend.client.exists("ran")
    calls = wait_until(
        lambda: tools.budgets.statistics().tasks.get(f"{APP}.telling"), "it is counted"
    )
    assert calls.outcomes["rejected"] == calls.rejections["deadline"] == 1


@pytest.mark.parametrize("how", ["delay", "by_name", "group", "chord", "chain"])
def test_a_call_passes_on_what_it_has_left(tools, how):
    """However it sends others."""
    sent, (soft, hard) = tools.sending.apply_async((how,), deadline=IN_ALL).get(timeout=30)
    for task_id in sent:
        theirs = told(tools, task_id)
        assert 0 < theirs[0] <= IN_ALL
        assert theirs[1] <= 1.5 * IN_ALL
        assert theirs[0] <= soft + 0.05
        assert theirs[1] <= hard + 0.05


def test_its_own_limit_is_passed_on_too(tools):
    """A call that inherits nothing passes on what the lane gives it."""
    sent, (soft, _) = tools.sending.apply_async(("delay",), soft_time_limit=20).get(timeout=30)
    assert 10 < told(tools, sent[0])[0] <= min(20, soft + 0.05)


def test_a_block_passes_on_what_it_has_left(tools):
    """Ten seconds there, although its task has more."""
    sent, _ = tools.sending.apply_async(("block",)).get(timeout=30)
    assert 0 < told(tools, sent[0])[0] <= 10


@pytest.mark.parametrize("how", ["delay", "handling"])
def test_a_call_may_opt_out(tools, how):
    """It has the limit of its lane then; also what is sent when the time is over."""
    if how == "handling" and tools.worker.command[-1] == "threads":
        pytest.skip("a sleeping thread does not notice its soft limit")
    sent, _ = tools.sending.apply_async((how,), {"deadline": None}, deadline=2.0).get(timeout=30)
    assert OWN - 10 < told(tools, sent[0])[0] <= OWN


def test_a_shorter_one_of_its_own_counts(tools):
    """And a longer one does not."""
    for own in (2.0, 60.0):
        sent, _ = tools.sending.apply_async(("delay",), {"deadline": own}, deadline=IN_ALL).get(
            timeout=30
        )
        assert 0 < told(tools, sent[0])[0] <= min(own, IN_ALL)


def test_by_a_header_with_its_name_alone(tools):
    """``send_task`` takes it as an option as well."""
    for options in ({"headers": tools.budgets.deadline(IN_ALL)}, {"deadline": IN_ALL}):
        result = tools.app.send_task(f"{APP}.telling", **options)
        assert 0 < result.get(timeout=30)[0] <= IN_ALL


def test_a_retry_keeps_what_was_inherited(tools):
    """Less the time that has gone by; without a deadline it has its own limit anew."""
    first, second = tools.retrying.apply_async(deadline=IN_ALL).get(timeout=30)
    assert 0 < second[0] <= first[0] - 1
    first, second = tools.retrying.delay().get(timeout=30)
    assert second[0] > OWN - 0.9


def test_a_wait_counts(tools):
    """What is left is measured when a call starts, and not when it arrives."""
    assert tools.telling.apply_async(deadline=IN_ALL, countdown=1).get(timeout=30)[0] <= IN_ALL - 1
    late = tools.telling.apply_async(deadline=0.5, countdown=1)
    with pytest.raises(RejectedByBudget, match="deadline"):
        late.get(timeout=30)


def test_a_call_in_the_line_may_be_too_late(tools):
    """One of several that were acknowledged early, and wait for the one slot of their lane."""
    first = tools.waiting.delay(2)
    late = tools.waiting.apply_async((0,), deadline=0.5)
    with pytest.raises(RejectedByBudget, match="deadline"):
        late.get(timeout=30)
    first.get(timeout=30)


def test_a_handler_of_errors_is_free(tools):
    """It runs when the time is over: often that is what it is for."""
    tools.app.backend.client.delete("handled")
    result = tools.failing.apply_async((20,), deadline=0.5, link_error=tools.handler.s())
    with pytest.raises(Exception):  # noqa: B017, PT011  its own, or that of the hard limit
        result.get(timeout=30)
    wait_until(lambda: tools.app.backend.client.llen("handled"), "it is handled", timeout=30)


@pytest.mark.parametrize("header", ["soon", 5, [1.0], ["a", "b"], [float("nan"), 1.0], {}])
def test_a_deadline_that_cannot_be_read_is_told_of(tools, header):
    """A producer may send anything; the call runs under its own limits."""
    if "nan" in str(header) and "amqp" in tools.worker.servers.broker:
        pytest.skip("RabbitMQ itself closes the connection for a header with NaN")
    result = tools.telling.apply_async(headers={"budgets_deadline": header})
    assert result.get(timeout=30)[0] > IN_ALL
    tools.worker.wait_for_log("budgets.header_malformed", f"task_id={result.id}")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("budgets_due_at", "soon"),
        ("budgets_due_at", [1.0]),
        ("budgets_due_at", {}),
        ("budgets_scope", 5),
        ("budgets_scope", ["a"]),
    ],
)
def test_other_headers_that_cannot_be_read_are_told_of(tools, header, value):
    """They come from a producer without this package, which puts right what it sends itself."""
    amqp, task_id = tools.app.amqp, f"{header}-{value}"
    message = amqp.as_task_v2(task_id, tools.telling.name)
    with tools.app.producer_or_acquire() as producer:
        producer.publish(
            message.body, headers=message.headers | {header: value}, serializer="json",
            routing_key="lane", declare=[amqp.queues["lane"]], **message.properties,
        )  # fmt: skip
    result = tools.app.AsyncResult(task_id)
    assert result.get(timeout=30)[0] > IN_ALL
    tools.worker.wait_for_log("budgets.header_malformed", f"task_id={task_id}", f"header={header}")
    tools.worker.wait_for_log("budgets.call_ended", f"task_id={task_id}", "outcome=succeeded")
