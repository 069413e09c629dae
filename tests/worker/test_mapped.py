"""`map`, `starmap` and `chunks` of a budgeted task take its slots and are held to its limits."""

from __future__ import annotations

import pytest
from celery import Celery, chain, chord
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from tests.support.marks import first_of
from tests.support.waiting import values_of, wait_until

APP = "tests.worker.mapped_app"
POOLS = ["prefork", "threads", "gevent", "solo"]
QUEUES = "rest,one,short"


@pytest.fixture(scope="module", params=first_of(*POOLS))
def pool(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(load_module_app):
    return load_module_app(APP)


@pytest.fixture(scope="module")
def running(pool, module_worker, loaded):
    """A worker of all lanes, and its app."""
    worker = module_worker(APP, "-Q", QUEUES, "-P", pool)
    yield worker, loaded
    worker.stop()


@pytest.fixture
def mapped(running):
    """The app, with nothing written down; and its worker still there."""
    worker, module = running
    module.redis().delete("together", "running")
    yield module
    assert worker.returncode is None, worker.tail()


def together(module):
    return {int(count) for count in module.redis().lrange("together", 0, -1)}


def test_maps_of_a_lane_of_one_run_one_after_the_other(mapped):
    """map, starmap, chunks and calls in person share the one slot."""
    results = [
        mapped.alone.map([1, 2]).delay(),
        mapped.alone.map([3, 4]).delay(),
        mapped.both.starmap([(5, 1), (6, 1)]).delay(),
        mapped.alone.chunks([(7,), (8,), (9,), (10,)], 2).apply_async(),
        mapped.alone.delay(11),
    ]
    assert values_of(results, 30) == [[1, 2], [3, 4], [6, 7], [[7, 8], [9, 10]], 11]
    assert together(mapped) == {1}


def test_a_map_is_counted_in_the_lane_of_its_task(mapped):
    def calls():
        lanes = mapped.budgets.statistics(timeout=2).lanes
        return lanes["short"].succeeded if "short" in lanes else 0

    before = calls()
    assert mapped.slow.map([0, 0]).delay().get(timeout=10) == [0, 0]
    wait_until(lambda: calls() == before + 1, "it is counted")


def test_a_map_has_the_soft_limit_of_its_task(mapped, pool):
    with pytest.raises(SoftTimeLimitExceeded):
        mapped.slow.map([0.02] * 200).delay().get(timeout=10)


def test_a_map_has_the_hard_limit_of_its_task(mapped, pool):
    if pool in ("gevent", "solo"):
        pytest.skip("no hard limit without a process or a thread of its own")
    with pytest.raises(TimeLimitExceeded):
        mapped.stubborn.map([5, 5]).delay().get(timeout=10)


def test_a_map_has_the_limit_that_an_operator_gives_its_task(mapped):
    """`celery control time_limit`, and again without."""

    def tell(**limits):
        (answer,) = mapped.app.control.time_limit(
            mapped.slow.name, **limits, reply=True, timeout=10, limit=1
        )
        assert "ok" in next(iter(answer.values()))

    tell(soft=0.2)
    try:
        with pytest.raises(SoftTimeLimitExceeded):
            mapped.slow.map([0.02] * 16).delay().get(timeout=10)
    finally:
        tell()
    assert mapped.slow.map([0.02] * 16).delay().get(timeout=10)


def test_a_map_in_a_canvas_that_has_travelled(mapped):
    """Celery hands routers a signature in the place of a name there."""
    result = chain(mapped.slow.si(0), mapped.alone.map([1, 2])).delay()
    assert result.get(timeout=20) == [1, 2]
    total = chord([mapped.alone.map([1]), mapped.alone.map([2])], mapped.alone.s()).delay()
    assert total.get(timeout=20) == [[1], [2]]
    assert together(mapped) == {1}


def test_a_map_of_a_sender_without_the_package(mapped, module_servers):
    """It goes to a queue that it names, and that queue is its lane."""
    with Celery(broker=module_servers.broker, set_as_current=False) as sender:
        ids = [
            sender.send_task(
                "celery.map", kwargs={"task": sender.signature(mapped.alone.name), "it": [1, 2]},
                queue="one",
            ).id
            for _ in range(3)
        ]  # fmt: skip
    results = [mapped.app.AsyncResult(task_id) for task_id in ids]
    assert values_of(results, 20) == [[1, 2]] * 3
    assert together(mapped) == {1}


def test_a_map_that_is_sent_by_its_name_goes_to_the_lane_of_its_task(mapped):
    sent = [
        mapped.app.send_task("celery.map", (dict(mapped.alone.s()), [1, 2])),
        mapped.app.send_task("celery.starmap", (), {"task": mapped.alone.s(), "it": [(3,)]}),
    ]
    assert values_of(sent, 20) == [[1, 2], [3]]
    assert together(mapped) == {1}


def test_a_map_of_a_plain_task_is_plain(mapped):
    """It takes no slot, and is in no figure."""
    before = mapped.budgets.statistics(timeout=2).total.succeeded
    assert mapped.plain.map([1, 2]).delay().get(timeout=10) == [2, 4]
    assert mapped.budgets.statistics(timeout=2).total.succeeded == before
