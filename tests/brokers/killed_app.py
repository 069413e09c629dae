"""Calls of microseconds in two lanes with priorities: each leaves its id in Redis."""

from __future__ import annotations

import os

from celery import Celery

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("killed")
app.conf.update(
    task_ignore_result=True,
    budgets_priorities=True,
    budgets_priority_aging=0.2,
    budgets_redis_transport=os.environ.get("TRANSPORT", "budgets"),
    broker_connection_retry_on_startup=True,
)
budgets = Budgets(app, lanes=[Lane("quick", 4), Lane("other", 4)])


@app.task(base=BudgetedTask, max_kills=100)
def run(number):
    """Note that *number* has run."""
    app.backend.client.sadd("ran", number)
