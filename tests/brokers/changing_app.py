"""Lanes that operators change at run time: calls that run until they are told to end."""

from __future__ import annotations

import json
import os
import time

from celery import Celery, group
from kombu import Exchange, Queue

from celery_budgets import BudgetedTask, Budgets, Lane

#: Concurrency by lane; ``LIMITS`` gives others as JSON.
LIMITS = json.loads(os.environ.get("LIMITS", "null")) or {"critic": 2, "file_read": 3}

app = Celery("changing")
app.conf.budgets_global_concurrency = 10
app.conf.broker_connection_retry_on_startup = True
if "QUORUM" in os.environ:
    app.conf.task_queues = [
        Queue(name, Exchange(name), name, queue_arguments={"x-queue-type": "quorum"})
        for name in LIMITS
    ]
Budgets(
    app,
    lanes=[Lane(name, limit, min=2 if name == "file_read" else None)
           for name, limit in LIMITS.items()],
)  # fmt: skip


@app.task(base=BudgetedTask, lane="critic")
def until_told(key):
    """Run until *key* is set at the result backend."""
    while not app.backend.client.exists(key):
        time.sleep(0.01)


@app.task(base=BudgetedTask, lane="critic")
def quick():
    """Do nothing."""


@app.task(base=BudgetedTask, lane="critic")
def waits(seconds, queue=None):
    """Wait for a call of the same lane, or of the one with *queue*."""
    result = quick.apply_async(queue=queue)
    return result.get(timeout=seconds, disable_sync_subtasks=False)


@app.task(base=BudgetedTask, lane="critic")
def joins(seconds):
    """Wait for a group of calls of the same lane."""
    result = group(quick.s(), quick.s())()
    return result.get(timeout=seconds, disable_sync_subtasks=False)
