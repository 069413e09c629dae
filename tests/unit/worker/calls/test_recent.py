"""What went wrong lately, with a clock of the test's own."""

from __future__ import annotations

import pytest

from celery_budgets.worker.calls.recent import SECONDS, STEP, RecentFailures
from celery_budgets.worker.calls.tally import Tally


class Clock:
    now = 1_000_003.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def facts(outcome: str) -> dict:
    return {
        "lane": "quick", "task": "some", "task_id": "id", "outcome": outcome, "seconds": 1.0,
        "wait_seconds": 0.0, "rss_peak_bytes": None, "rss_before_bytes": None, "scope": None,
        "soft_limit_exceeded": False, "trace_id": None, "twin": False, "worker": "w",
    }  # fmt: skip


def test_what_is_five_minutes_old_is_forgotten(clock):
    """Within a step of ten seconds, and each event for itself."""
    recent = RecentFailures(clock)
    recent.count("quick", "rejected")
    clock.now += SECONDS - 2 * STEP
    recent.count("quick", "rejected", 2)
    recent.count("slow", "rejected", 5)
    assert recent.of("quick") == {"rejected": 3}
    clock.now += 2 * STEP
    assert recent.of("quick") == {"rejected": 2}
    clock.now += SECONDS
    assert recent.of("quick") == recent.of("slow") == recent.of("other") == {}
    assert not recent._steps


def test_a_flood_takes_no_memory(clock):
    """One counter for each step, however many events."""
    recent = RecentFailures(clock)
    for _ in range(10_000):
        recent.count("quick", "rejected")
        clock.now += 0.1
    assert len(recent._steps) <= SECONDS / STEP
    assert recent.of("quick")["rejected"] <= 3_000


def test_only_what_a_total_has_grown_by_is_recent(clock):
    """A worker looks at it every second."""
    recent = RecentFailures(clock)
    for total in (0, 3, 3, 4):
        recent.follow("telemetry_failures", total)
    assert recent.of("") == {"telemetry_failures": 4}
    clock.now += SECONDS + STEP
    recent.follow("telemetry_failures", 6)
    assert recent.of("") == {"telemetry_failures": 2}


def test_a_tally_counts_kills_and_rejections_and_no_success():
    """Those of an alert; the statistics have all of them, since the start."""
    tally = Tally(lambda: None)
    for outcome in ("succeeded", "failed", "hard_time_limit", "memory_limit", "worker_lost"):
        tally.count(facts(outcome))
    tally.count(facts("rejected"), "lane_concurrency")
    tally.reject("quick", "some", "max_worker_rss")
    assert tally.recent.of("quick") == {"hard_time_limit": 1, "memory_limit": 1, "rejected": 2}
    assert tally.statistics().total.rejections.total() == 2
