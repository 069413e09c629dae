"""Calls that die or hang twice, under each of Celery's settings for what becomes of them."""

from __future__ import annotations

import os
import time

from celery import Celery

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("settling")
app.conf.update(task_default_retry_delay=0)
if "APP_WIDE" in os.environ:
    app.conf.update(task_acks_on_failure_or_timeout=False, task_reject_on_worker_lost=True)
budgets = Budgets(
    app,
    lanes=[
        Lane("lane", 2, timeout=0.2, hard_timeout=0.6),
        Lane("wide", 4, timeout=30.0),
    ],
)


def body(self, fault):
    """Do what *fault* says, but for the third time."""
    runs = app.backend.client.incr(f"runs:{self.request.id}")
    if runs > 2:
        return runs
    if fault == "die":
        os._exit(3)
    while True:
        try:
            time.sleep(0.02)
        except Exception:
            continue


#: By the name of a task, what is set on it.
TASKS = {
    "plain": {},
    "unacknowledged": {"acks_on_failure_or_timeout": False},
    "unacknowledged_timeout": {"acks_on_timeout": False},
    "unacknowledged_failure": {"acks_on_failure": False},
    "rejected": {"reject_on_worker_lost": True},
    "sent_again": {"retry_on_worker_lost": True, "default_retry_delay": 0},
    "bounded": {
        "acks_on_failure_or_timeout": False, "reject_on_worker_lost": True, "max_kills": 1,
    },
    "early": {"acks_on_failure_or_timeout": False, "reject_on_worker_lost": True,
              "idempotent": False},
}  # fmt: skip
for name, options in TASKS.items():
    app.task(base=BudgetedTask, bind=True, name=name, lane="lane", shared=False, **options)(body)
