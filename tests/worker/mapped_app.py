"""Tasks that are mapped: one at a time, under limits, and without a budget."""

from __future__ import annotations

import os
import time

from celery import Celery, Task

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("mapped", task_cls=BudgetedTask if "TASK_CLS" in os.environ else None)
budgets = Budgets(
    app,
    lanes=[
        Lane("rest", 4, tools=("*",)),
        Lane("one", 1),
        Lane("short", 1, timeout=0.5, hard_timeout=1.5),
    ],
)


def redis():
    return app.backend.client


@app.task(shared=False, base=BudgetedTask, lane="one")
def alone(number):
    """Write down how many run at once."""
    redis().rpush("together", redis().incr("running"))
    time.sleep(0.05)
    redis().decr("running")
    return number


@app.task(shared=False, base=BudgetedTask, lane="one")
def both(left, right):
    return alone.run(left) + right


@app.task(shared=False, base=BudgetedTask, lane="short")
def slow(seconds):
    time.sleep(seconds)
    return seconds


@app.task(shared=False, base=BudgetedTask, lane="short", idempotent=False, timeout=0.3)
def stubborn(seconds):
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            time.sleep(min(left, 0.02))
        except Exception:
            continue


@app.task(shared=False, base=Task)
def plain(number):
    return number * 2
