"""All lanes in one worker: calls that tell when they ran."""

from __future__ import annotations

import json
import os
import time

from celery import Celery

from celery_budgets import BudgetedTask, Budgets, Lane

#: Concurrency by lane; ``LIMITS`` gives others as JSON, ``SHARING`` their (min, max).
LIMITS = json.loads(os.environ.get("LIMITS", "null")) or {
    "tool_call": 8, "file_read": 16, "file_write": 4, "critic": 3, "forecast_model": 1,
}  # fmt: skip
SHARING = json.loads(os.environ.get("SHARING", "{}"))

app = Celery("together")
app.conf.budgets_global_concurrency = max(32, sum(LIMITS.values()))
app.conf.budgets_priorities = os.environ.get("PRIORITIES") == "1"
app.conf.budgets_priority_aging = float(os.environ.get("AGING", "60"))
app.conf.worker_send_task_events = False
if "PREFETCH" in os.environ:
    app.conf.worker_prefetch_multiplier = int(os.environ["PREFETCH"])
if "VISIBLE" in os.environ:
    # Redis: what was in hand and had not started when the connection was lost comes again then.
    app.conf.broker_transport_options = {"visibility_timeout": float(os.environ["VISIBLE"])}
    app.conf.budgets_timeout = float(os.environ["VISIBLE"]) / 2
if "STEPS" in os.environ:
    app.conf.broker_transport_options = {"priority_steps": json.loads(os.environ["STEPS"])}
budgets = Budgets(
    app,
    lanes=[
        Lane(
            name, limit, idempotent=name != "file_write",
            min=SHARING.get(name, [None])[0], max=SHARING.get(name, [None, None])[1],
        )
        for name, limit in LIMITS.items()
    ],
)  # fmt: skip


@app.task(base=BudgetedTask, max_kills=100)
def occupy(seconds):
    """Take a slot for *seconds*; return when it was taken and left, by the wall clock."""
    began = time.time()
    time.sleep(seconds)
    return began, time.time()


@app.task(base=BudgetedTask)
def count(number):
    """Take a second; count how often *number* has run."""
    app.backend.client.hincrby("runs", number, 1)
    time.sleep(1)


@app.task(base=BudgetedTask)
def note(name):
    """Append *name* to the list of what ran, in the order in which it ran."""
    app.backend.client.rpush("ran", name)


@app.task(base=BudgetedTask)
def until_told(key):
    """Run until *key* is set at the result backend."""
    while not app.backend.client.exists(key):
        # A thousand threads that look more often keep the worker from its own work.
        time.sleep(0.25)


@app.task(base=BudgetedTask, bind=True)
def once_more(self, level):
    """Retry once; return the broker's numbers of both deliveries."""
    number = self.request.delivery_info["priority"]
    if not self.request.retries:
        app.backend.client.set(f"first:{self.request.id}", number)
        raise self.retry(countdown=0)
    return int(app.backend.client.get(f"first:{self.request.id}")), number
