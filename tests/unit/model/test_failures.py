"""Failures of telemetry: who is told, how often, and for how long."""

from __future__ import annotations

import gc

from celery_budgets.model import failures


class Counter:
    def __init__(self):
        self.failures = 0

    def count(self):
        self.failures += 1


def test_who_listens_twice_is_told_once():
    """A second worker of one app in one process counts in the same roster."""
    counter = Counter()
    failures.listen(counter.count)
    failures.listen(counter.count)
    failures.count()
    assert counter.failures == 1


def test_who_is_gone_listens_no_more():
    """A worker that has ended is not kept by its listener."""
    counter = Counter()
    failures.listen(counter.count)
    gc.collect()
    before = len(failures._listeners)
    del counter
    gc.collect()
    failures.listen(Counter().count)
    failures.count()
    assert len(failures._listeners) <= before
