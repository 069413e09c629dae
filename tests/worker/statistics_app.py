"""Calls that write down themselves what they took, to compare the statistics with."""

from __future__ import annotations

import time

from celery import Celery

from celery_budgets import BudgetedTask, Budgets, Lane

LANES = ("one", "two", "three", "four", "five")

app = Celery("statistics")
budgets = Budgets(app, lanes=[Lane(name, concurrency=2) for name in LANES])


@app.task(base=BudgetedTask, bind=True)
def spend(self, seconds, fail=False):
    """Return, or raise with, what the call saw of itself: nothing may come after the clock."""
    lane, worker = self.request.delivery_info["routing_key"], self.request.hostname
    began = time.perf_counter()
    time.sleep(seconds)
    if fail:
        raise ValueError(lane, worker, time.perf_counter() - began)
    return lane, worker, time.perf_counter() - began
