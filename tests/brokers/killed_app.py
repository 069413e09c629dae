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
options = {}
if "VISIBLE" in os.environ:
    # What the broker has handed out and nobody has noted comes again then.
    options = {
        "visibility_timeout": float(os.environ["VISIBLE"]),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
    app.conf.budgets_timeout = 2
if "MASTER" in os.environ:
    options["master_name"] = os.environ["MASTER"]
app.conf.broker_transport_options = options
budgets = Budgets(app, lanes=[Lane("quick", 4), Lane("other", 4)])


@app.task(base=BudgetedTask, max_kills=100)
def run(number):
    """Note that *number* has run."""
    app.backend.client.sadd("ran", number)
