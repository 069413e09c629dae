"""Lanes on real workers: what each takes by itself, what it refuses, and that limits hold."""

from __future__ import annotations

import pytest

from celery_budgets.model.lanes import DEFAULT_LANES
from tests.support.spans import most_at_once
from tests.support.waiting import wait_until

APP = "tests.worker.default_lanes_app"
TOOLS = {lane.name: "".join(lane.tools) or "word_count" for lane in DEFAULT_LANES}
CONCURRENCY = {lane.name: lane.concurrency for lane in DEFAULT_LANES}
#: 60 calls, in each lane more than it has slots.
CALLS = {"tool_call": 16, "file_read": 20, "file_write": 10, "critic": 8, "forecast_model": 6}
assert sum(CALLS.values()) == 60


@pytest.fixture(scope="module")
def lane_workers(module_worker):
    """A worker for each default lane, started as a user does: `-Q LANE` and nothing else."""
    workers = {lane: module_worker(APP, "-Q", lane, ready=False) for lane in CONCURRENCY}
    for running in workers.values():
        running.wait_ready(timeout=60)
    return workers


@pytest.fixture(scope="module")
def default_lanes(load_module_app):
    return load_module_app(APP)


@pytest.fixture(scope="module")
def stats(lane_workers, default_lanes):
    """`celery inspect stats` of each lane's worker."""

    def ask():
        replies = default_lanes.app.control.inspect(timeout=2).stats() or {}
        by_name = {name.partition("@")[0]: reply for name, reply in replies.items()}
        found = {lane: by_name.get(running.name) for lane, running in lane_workers.items()}
        return found if all(found.values()) else None

    return wait_until(ask, "all five workers answer", timeout=30)


@pytest.mark.parametrize("lane", CONCURRENCY)
def test_a_worker_takes_its_lanes_concurrency(stats, lane):
    """As many pool processes as the lane has slots, and one message in hand for each."""
    assert len(stats[lane]["pool"]["processes"]) == CONCURRENCY[lane]
    assert stats[lane]["prefetch_count"] == CONCURRENCY[lane]
    assert stats[lane]["pool"]["writes"]["strategy"] == "fair"


@pytest.mark.parametrize("lane", CONCURRENCY)
def test_a_worker_shows_its_lane_in_its_stats(stats, lane):
    """Flower prints what `inspect stats` has: limits, and what the pool enforces."""
    shown = stats[lane]["budgets"]
    assert shown["pool"] == "prefork"
    assert shown["capacity"] == CONCURRENCY[lane]
    assert list(shown["lanes"]) == [lane]
    assert shown["lanes"][lane]["concurrency"] == CONCURRENCY[lane]
    limits = (shown["lanes"][lane]["soft_time_limit"], shown["lanes"][lane]["hard_time_limit"])
    assert limits == (300, 450)  # 300 x 1.5


def test_no_lane_runs_more_at_once_than_its_concurrency(lane_workers, default_lanes):
    """60 calls over five lanes arrive in their lanes, and fill exactly the slots of each.

    Each call waits until it is let go, so that every slot that there is gets taken; what ran at
    once is computed from the calls' own timestamps.
    """
    app, redis = default_lanes.app, default_lanes.redis()
    results = {
        lane: [app.tasks[TOOLS[lane]].delay("go") for _ in range(count)]
        for lane, count in CALLS.items()
    }
    wait_until(
        lambda: redis.llen("go:started") >= 32,
        "all 32 slots are taken",
        timeout=30,
        detail=lambda: str(redis.lrange("go:started", 0, -1)),
    )
    redis.set("go", 1)
    for lane, sent in results.items():
        runs = [result.get(timeout=60) for result in sent]
        assert {queue for *_, queue in runs} == {lane}
        assert most_at_once(runs) == CONCURRENCY[lane]
        assert len({pid for _, _, pid, _ in runs}) <= CONCURRENCY[lane]
    statistics = default_lanes.budgets.statistics(timeout=5)
    assert {lane: calls.outcomes for lane, calls in statistics.lanes.items()} == {
        lane: {"succeeded": count} for lane, count in CALLS.items()
    }
    assert statistics.silent == ()


def test_what_runs_at_once_is_counted_right():
    """The measure of the test above, by hand."""
    assert most_at_once([]) == 0
    assert most_at_once([(0, 1), (1, 2), (2, 3)]) == 1
    assert most_at_once([(0, 5), (1, 2), (1, 3), (4, 5)]) == 3


ACCEPTED = {
    "several queues": ("-Q", "file_write,critic,forecast_model"),
    "fewer slots": ("-Q", "critic", "-c", "2"),
    "autoscaling": ("-Q", "critic", "--autoscale", "3,1"),
}


@pytest.fixture(scope="module")
def accepted(module_worker, new_servers):
    """``accepted(which)`` gives a worker that is ready; all of them start at once."""
    started = {
        which: module_worker(APP, *arguments, ready=False, servers=new_servers())
        for which, arguments in ACCEPTED.items()
    }
    return lambda which: started[which].wait_ready()


def test_several_queues_take_the_sum(accepted):
    """A worker of three lanes has 4 + 3 + 1 slots."""
    running = accepted("several queues")
    line = running.wait_for_log("budgets.worker_started")
    assert "lanes=file_write,critic,forecast_model concurrency=8 " in line
    assert len(running.pool_pids()) == 8


def test_fewer_slots_are_accepted_and_said(accepted):
    """`-c` below the lane's concurrency is an operator's choice: it is taken, and logged."""
    running = accepted("fewer slots")
    running.wait_for_log("budgets.concurrency_lowered", "lanes=critic concurrency=2 of=3")
    assert len(running.pool_pids()) == 2


def test_autoscaling_within_the_lane_is_accepted(accepted):
    """Up to the lane's concurrency, and no further."""
    running = accepted("autoscaling")
    assert "Error" not in running.log


REFUSED = {
    "more slots than the lane has": (
        ["-Q", "critic", "-c", "9"],
        {},
        "-c 9 is above the concurrency of critic (3); leave -c out, or raise the lane's "
        "concurrency",
    ),
    "more slots than all its lanes have": (
        ["-Q", "critic,file_write", "-c", "9"],
        {},
        "-c 9 is above the concurrency of file_write, critic (7); leave -c out, or raise the "
        "lane's concurrency",
    ),
    "more slots, on threads": (
        ["-Q", "critic", "-c", "9", "-P", "threads"],
        {},
        "-c 9 is above the concurrency of critic (3); leave -c out, or raise the lane's "
        "concurrency",
    ),
    "a queue that there is not": (
        ["-Q", "critics,file_read"],
        {},
        "-Q critics: there is no such queue; did you mean 'critic'? known: critic, file_read, "
        "file_write, forecast_model, tool_call",
    ),
    "autoscaling above the lane": (
        ["-Q", "critic", "--autoscale", "10,2"],
        {},
        "--autoscale 10 is above the concurrency of critic (3); lower it to that, or raise the "
        "lane's concurrency",
    ),
    "a broker that hands running calls out again": (
        ["-Q", "critic"],
        {"VISIBILITY": "450", "CELERY_BUDGETS_REDIS_TRANSPORT": "kombu"},
        "lane 'critic': hard time limit 450 s is not below the broker's visibility timeout "
        "(450 s), so a running call would be handed out a second time; set "
        "broker_transport_options['visibility_timeout'] above 450, or lower the timeout",
    ),
    "a memory limit that the worker itself exceeds": (
        ["-Q", "critic"],
        {"CELERY_BUDGETS_MAX_RSS": "20MiB"},
        "lane 'critic': max_rss 20 MiB is below what the worker takes before its first call (",
    ),
    "a wrong setting": (
        ["-Q", "critic"],
        {"CELERY_BUDGETS_TIMEOUT": "soon"},
        "setting budgets_timeout: 'soon' is not a duration: write it as '90s', '5m', '1.5h' or "
        "'250ms'",
    ),
}


THREE_REASONS = (
    ["-Q", "critic", "-c", "9"],
    {
        "VISIBILITY": "400",
        "CELERY_BUDGETS_MAX_RSS": "20MiB",
        "CELERY_BUDGETS_REDIS_TRANSPORT": "kombu",
    },
)


@pytest.fixture(scope="module")
def refused(module_worker):
    """``refused(why)`` gives a worker that has ended with code 1; all of them start at once."""
    each = {why: row[:2] for why, row in REFUSED.items()} | {"three reasons": THREE_REASONS}
    started = {
        why: module_worker(APP, *arguments, ready=False, env=environment)
        for why, (arguments, environment) in each.items()
    }

    def ended(why):
        assert started[why].wait_exit(timeout=60) == 1
        return started[why]

    return ended


@pytest.mark.parametrize("why", REFUSED)
def test_a_worker_that_must_not_start(refused, why):
    """It says what is wrong and the remedy in one line, and exits with code 1."""
    *_, message = REFUSED[why]
    running = refused(why)
    assert f"Error: {message}" in running.log
    assert "Traceback" not in running.log


def test_all_reasons_come_at_once(refused):
    """Three things wrong with one worker are one message."""
    running = refused("three reasons")
    assert "Error: 3 problems in the configuration:\n  - -c 9 is above" in running.log
    assert "  - lane 'critic': hard time limit 450 s" in running.log
    assert "  - lane 'critic': max_rss 20 MiB" in running.log
    assert "Traceback" not in running.log
