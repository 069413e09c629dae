"""A call that its pool has lost gives its slot back, and everybody hears of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery.exceptions import WorkerLostError
from celery.utils.nodenames import gethostname

from celery_budgets.worker.calls.roster import Roster
from celery_budgets.worker.lanes.slot_recovery import EVERY, SlotRecovery
from tests.support.marks import first_of
from tests.support.waiting import wait_until

APP = "tests.worker.recovery_app"


@pytest.mark.parametrize("pool", first_of("prefork", "threads", "gevent"))
def test_a_lost_call_is_settled(worker, load_app, pool):
    """Its slot is free within two looks; outcome, result, metric's count and alert are there."""
    running = worker(APP, "-Q", "narrow,other", "-P", pool)
    running.may_lose_calls = True
    app = load_app(APP)
    # Its process waits another 30 s for somebody to read the result, and then the worker can stop.
    lost = app.nap.delay(15)
    running.wait_active()
    node = f"{running.name}@{gethostname()}"
    assert app.app.control.broadcast(
        "lose_calls", destination=[node], reply=True, timeout=5, limit=1
    ) == [{node: 1}]
    assert app.nap.delay(0).get(timeout=4 * EVERY) == 0
    assert f"task_id={lost.id} lane=narrow" in running.wait_for_log("budgets.slot_recovered")
    with pytest.raises(WorkerLostError, match="has lost this call"):
        lost.get(timeout=10)
    lane = wait_until(lambda: app.budgets.statistics().lanes.get("narrow"), "it is counted")
    assert lane.outcomes["worker_lost"] == 1
    wait_until(
        lambda: "1 slot taken back" in str(alerts(app)), "the alert is there", detail=running.tail
    )


def alerts(app):
    from celery_budgets.sending.status.alerts import alerts_of

    answers, *_ = app.budgets._inspection.ask(2.0)
    return [alerts_of("narrow", answer) for answer in answers.values()]


class Call:
    """A call in a slot."""

    def __init__(self, job) -> None:
        self.job, self._apply_result = job, None
        self.message_key = ("1", None)
        self.name, self.id, self.lane = "task", "1", SimpleNamespace(name="lane")
        self.ended = []

    def comes_back(self) -> None:
        pass

    def end_killed(self, error, outcome) -> None:
        self.ended.append(outcome.value)


class Worker:
    """What holds its calls."""

    def __init__(self, *calls) -> None:
        self.now, self.waiting = 0.0, set()
        self.roster = Roster()
        slots = SimpleNamespace(reserved=lambda: list(calls), release=lambda call: None)
        self.net = SlotRecovery(slots, self.roster, self.waiting.__contains__, lambda: self.now)

    def look(self) -> None:
        self.now += EVERY
        self.net.look()


def test_a_call_is_settled_at_the_second_look():
    """The end of one that is missing once may be on its way."""
    call = Call(SimpleNamespace(dead=True))
    worker = Worker(call)
    worker.look()
    assert call.ended == []
    worker.look()
    assert (call.ended, worker.roster.slots_recovered) == (["worker_lost"], 1)


@pytest.mark.parametrize(
    "job",
    [
        SimpleNamespace(dead=False),
        SimpleNamespace(f=SimpleNamespace(done=lambda: False)),
        SimpleNamespace(_cache={7: None}, _job=7, ready=lambda: False),
        SimpleNamespace(),
    ],
)
def test_a_call_that_runs_is_left_alone(job):
    """By the job of each pool, and on one that nobody knows."""
    call = Call(job)
    worker = Worker(call)
    for _ in range(4):
        worker.look()
    assert call.ended == []


def test_a_call_that_waits_for_its_place_in_the_pool_is_left_alone():
    call = Call(None)
    worker = Worker(call)
    worker.waiting.add(call)
    for _ in range(4):
        worker.look()
    assert call.ended == []


def test_a_lost_connection_begins_anew():
    """Celery drops jobs by itself then."""
    call = Call(SimpleNamespace(dead=True))
    worker = Worker(call)
    worker.look()
    worker.net.lose_connection()
    worker.look()
    assert call.ended == []
