"""Tasks that are acknowledged early and late, each for another reason."""

from __future__ import annotations

import time

from celery import Celery

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("acknowledging")
budgets = Budgets(app, lanes=[Lane("safe", 8), Lane("once", 3, idempotent=False)])


def nap(seconds: float) -> None:
    time.sleep(seconds)


#: Options of the task, and whether its message is acknowledged while it runs.
TASKS = {
    "default": ({}, False),
    "early_by_task": ({"idempotent": False}, True),
    "early_by_celery": ({"acks_late": False}, True),
    "early_by_lane": ({"lane": "once"}, True),
    "late_by_task": ({"lane": "once", "idempotent": True}, False),
    "late_by_celery": ({"lane": "once", "acks_late": True}, False),
}
for name, (options, _) in TASKS.items():
    app.task(base=BudgetedTask, name=name, shared=False, **options)(nap)
