"""What a worker knows of the calls that it has started: their rate, and how old they were."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_budgets.model.priority import Broker, Priority
from celery_budgets.worker.backlog.flow import Flow, published_of


class Clock:
    """Monotonic seconds that a test sets."""

    now = 1000.0

    def __call__(self):
        return self.now


def call(lane="critic", published=None, priority=None, **more):
    headers = {"eta": more.pop("eta", None)}
    if published is not None:
        headers["budgets_due_at"] = published
    return SimpleNamespace(
        lane=SimpleNamespace(name=lane), request_dict=headers,
        delivery_info={"priority": priority, **more},
    )  # fmt: skip


def test_the_watermark_is_that_of_the_last_call():
    """Per lane; nothing is known before the first."""
    flow = Flow()
    assert flow.watermark("critic") is None
    flow.started(call(published=10.0))
    flow.started(call(published=12.5))
    flow.started(call("other", published=3.0))
    assert (flow.watermark("critic"), flow.watermark("other")) == (12.5, 3.0)


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(call(), id="plain sender"),
        pytest.param(call(published=99.0, eta="2026-01-01T00:00:00"), id="ETA"),
        pytest.param(call(published=1.0, redelivered=True), id="redelivered"),
    ],
)
def test_what_tells_nothing_of_the_queue_leaves_the_watermark(odd):
    """It counts as started nevertheless."""
    clock = Clock()
    flow = Flow(clock=clock)
    flow.started(call(published=10.0))
    flow.started(odd)
    clock.now += 10
    assert flow.watermark("critic") == 10.0
    assert flow.departures_per_second("critic") == pytest.approx(0.2)


def test_a_message_with_an_eta_does_not_tell_when_it_was_published():
    """Its header has the ETA."""
    assert published_of(call(published=99.0, eta="2026-01-01T00:00:00")) is None
    assert published_of(call(published=99.0)) == 99.0


def test_each_priority_has_a_watermark():
    """The lists of a lane on Redis, its two queues on RabbitMQ, are each served in order."""
    flow = Flow(Broker.REDIS)
    flow.started(call(published=10.0, priority=0))
    flow.started(call(published=5.0, priority=9))
    assert flow.watermark("critic") == 5.0
    assert flow.watermark("critic", Priority.HIGH) == 10.0
    assert flow.watermark("critic", Priority.LOW) == 5.0
    assert flow.watermark("critic", Priority.NORMAL) is None


def test_departures_are_of_the_last_minute():
    """30 calls, 1 a second, then none: half a minute later the rate is half."""
    clock = Clock()
    flow = Flow(clock=clock)
    for _ in range(120):
        clock.now += 1
        flow.started(call())
        flow.look()
    assert flow.departures_per_second("critic") == pytest.approx(1.0, abs=0.05)
    for _ in range(30):
        clock.now += 1
        flow.look()
    assert flow.departures_per_second("critic") == pytest.approx(0.5, abs=0.05)
    clock.now += 60
    flow.look()
    assert flow.departures_per_second("critic") == 0


def test_how_fast_the_last_calls_have_started():
    """Whatever was before; a burst after an idle minute counts as it is."""
    clock = Clock()
    flow = Flow(clock=clock)
    assert flow.starts_per_second("critic", 20) is None
    flow.started(call())
    assert flow.starts_per_second("critic", 20) is None
    clock.now += 100
    for _ in range(30):
        clock.now += 0.1
        flow.started(call())
    assert flow.starts_per_second("critic", 20) == pytest.approx(10)
