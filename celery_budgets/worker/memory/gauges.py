"""The gauges of a worker's gate: the memory of the worker, and of calls in its process.

See also: :mod:`celery_budgets.worker.memory.gate`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from celery_budgets.config.settings import Settings
from celery_budgets.execution.memory import rss as memory
from celery_budgets.execution.memory.cgroup import physical_memory, tightest_cgroup
from celery_budgets.execution.memory.pss import ProcessTree
from celery_budgets.model.lanes import Lane
from celery_budgets.worker.memory.gate import Gauge

__all__ = ["gauges_of"]

#: Share of the cgroup's limit, or of the machine's memory, that a worker may take by default.
_DEFAULT_SHARE = 0.9


def gauges_of(settings: Settings, lanes: list[Lane], *, shared: bool) -> Iterator[Gauge]:
    """Yield the gauges of a worker's gate.

    Args:
        settings: The settings of the app.
        lanes: The lanes that the worker serves.
        shared: Whether calls run in the process of the worker.
    """
    yield _worker_gauge(settings)
    if shared and lanes:
        tightest = min((lane.budget for lane in lanes), key=lambda budget: budget.max_rss)
        yield Gauge("max_rss", tightest.max_rss, tightest.rss_warning, memory.rss)


def _worker_gauge(settings: Settings) -> Gauge:
    limit, group = settings.max_worker_rss, None
    if limit is None:
        group = tightest_cgroup()
        limit = int(_DEFAULT_SHARE * (group.limit if group is not None else physical_memory()))
    resume = int(limit * settings.budget.rss_warning / settings.budget.max_rss)
    if group is not None:
        # Of all processes in it: at the group's limit the kernel may kill any of them.
        return Gauge("max_worker_rss", limit, resume, lambda: group.use() or 0)
    tree = ProcessTree(os.getpid())
    return Gauge("max_worker_rss", limit, resume, lambda: tree.size(resume))
