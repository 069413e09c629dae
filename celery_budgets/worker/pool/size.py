"""Reads the kind, the processes and the size of a pool, and grows it.

It never shrinks one: Celery cannot remove slots from a pool while calls run in all of them
(billiard.pool.Pool.shrink raises, other pools count below zero). Lower limits do not need it.

Runs in the worker main process.
"""

from __future__ import annotations

from typing import Any

__all__ = ["GROWING_POOLS", "grow", "pool_name", "pool_pids", "slots_of"]

#: Pools that can be given slots, by the names of :func:`pool_name`.
GROWING_POOLS = frozenset({"prefork", "threads", "gevent"})


def pool_name(pool_class: Any) -> str:
    """Return ``prefork``, ``threads``, ``gevent``, ``eventlet`` or ``solo``; else the module."""
    module = str(pool_class if isinstance(pool_class, str) else pool_class.__module__)
    name = module.partition(":")[0].rpartition(".")[2]
    return "threads" if name == "thread" else name


def pool_pids(pool: Any) -> list[int]:
    """Return the pids of the processes of *pool*; empty if calls run in the worker itself."""
    processes = getattr(getattr(pool, "_pool", None), "_pool", None) or ()
    return [process.pid for process in processes if process.pid]


def slots_of(pool: Any) -> int:
    """Return how many calls *pool* runs at once; 0 before it has started and after its end.

    ``num_processes`` of Celery's pool; except on gevent, where that is the running calls in 5.5.
    """
    greenlets = getattr(pool, "_pool", None)
    return int(getattr(greenlets, "size", getattr(pool, "num_processes", 0)))


def grow(pool: Any, kind: str, slots: int) -> None:
    """Add *slots* to *pool*, which is of the named *kind*."""
    if kind == "threads":
        _add_threads(pool, slots)
        return
    pool.grow(slots)
    if kind == "prefork":
        # Otherwise a timer starts its processes, up to 5 s later.
        pool.maintain_pool()


def _add_threads(pool: Any, slots: int) -> None:
    """Let a pool of threads have more of them; each starts with the first call that needs it.

    Celery's has no ``grow``. Accesses internals of concurrent.futures.ThreadPoolExecutor, which
    compares ``_max_workers`` with its threads at each submission.
    """
    pool.executor._max_workers += slots
    pool.limit += slots
