"""How the scripts of limits are told what a call needs, and what keys are named in Redis.

Used in each process that runs calls with limits, or asks about them. See also:
:mod:`celery_budgets.shared_state.limit_store`.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from celery_budgets.model.limit import Demand

__all__ = ["arguments_of", "key_in_use", "short"]

_LONGEST_KEY = 200


def arguments_of(demand: Demand) -> tuple[Any, ...]:
    """Return what the scripts read of *demand* beside its names."""
    limit = demand.limit
    interval = limit.rate.interval * 1e6 if limit.rate is not None else 0
    return limit.concurrency or 0, demand.weight, interval, limit.burst, key_in_use(demand)


def key_in_use(demand: Demand) -> str:
    """Return the name of its key where it is counted what keys have used; empty if it has none."""
    return "" if demand.limit.key is None else f"key:{short(demand.key)}"


def short(key: str) -> str:
    """Return the name of *key* in Redis; it may not even be UTF-8."""
    if len(key) > _LONGEST_KEY or not key.isprintable():
        return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return key
