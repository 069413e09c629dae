"""One queue of calls that take no time, for plain Celery workers and for ours, as ``KIND`` says."""

from __future__ import annotations

import os

from celery import Celery, Task
from kombu import Queue

from celery_budgets import BudgetedTask, Budgets, Lane

OURS = os.environ["KIND"] == "ours"

app = Celery("mixed")
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    task_queues=[Queue("mixed")],
    task_default_queue="mixed",
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)
if OURS:
    Budgets(app, lanes=[Lane("mixed", 4)])


@app.task(base=BudgetedTask if OURS else Task, name="run")
def run(number):
    """Note that *number* has run."""
    app.backend.client.sadd("ran", number)
