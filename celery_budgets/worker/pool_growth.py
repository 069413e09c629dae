"""Giving a running pool more slots.

There is no way back: Celery cannot take slots from a pool while calls run in all of them
(billiard.pool.Pool.shrink raises, the other pools count below zero). Limits hold without it.

Runs in the worker main process.
"""

from __future__ import annotations

from typing import Any

__all__ = ["GROWING_POOLS", "grow"]

#: Pools that can be given slots, by the names of :func:`celery_budgets.worker.checks.pool_name`.
GROWING_POOLS = frozenset({"prefork", "threads", "gevent"})


def grow(pool: Any, kind: str, slots: int) -> None:
    """Give *pool*, of the named *kind*, that many more slots, for calls from now on."""
    if kind == "threads":
        _add_threads(pool, slots)
        return
    pool.grow(slots)
    if kind == "prefork":
        # Otherwise its processes start with the next look of a timer, up to 5 s later.
        pool.maintain_pool()


def _add_threads(pool: Any, slots: int) -> None:
    """Let a pool of threads have more of them; each starts with the first call that needs it.

    Celery's has no ``grow``. Reaches into concurrent.futures.ThreadPoolExecutor, which compares
    ``_max_workers`` with its threads at each submission.
    """
    pool.executor._max_workers += slots
    pool.limit += slots
