"""How many calls a pool runs at once, as each pool of Celery tells it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery.concurrency.prefork import TaskPool

from celery_budgets.worker.pool.size import slots_of


@pytest.mark.parametrize(
    ("pool", "slots"),
    [
        (SimpleNamespace(_pool=SimpleNamespace(_processes=4), num_processes=4), 4),  # prefork
        (SimpleNamespace(executor=None, num_processes=3), 3),  # threads
        (SimpleNamespace(_pool=SimpleNamespace(size=5), num_processes=0), 5),  # gevent, Celery 5.5
        (SimpleNamespace(_pool=SimpleNamespace(size=5), num_processes=5), 5),  # gevent, 5.7
        (None, 0),
    ],
)
def test_each_pool_says_how_many_calls_it_runs_at_once(pool, slots):
    """Celery 5.5 counts those that run on gevent: of an idle worker none, so none would start."""
    assert slots_of(pool) == slots


def test_a_pool_that_has_not_started_runs_none():
    """Celery's prefork pool asks its AsynPool, which is not there yet."""
    assert slots_of(TaskPool(limit=2)) == 0
