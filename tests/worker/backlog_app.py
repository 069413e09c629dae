"""Lanes whose calls wait, for the tests of what is told of them."""

from __future__ import annotations

import os
import time

from celery import Celery

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("backlog", task_cls=BudgetedTask)
budgets = Budgets(app, lanes=[Lane("busy", 1, timeout=300, slo="1s"), Lane("idle", 2)])
if "PRIORITIES" in os.environ:
    app.conf.budgets_priorities = True


@app.task(lane="busy")
def nap(seconds: float) -> None:
    time.sleep(seconds)


@app.task(lane="idle")
def nothing(_: object = None) -> None:
    pass
