"""What is recent for seconds, where it is for minutes elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time

from celery import Celery

from celery_budgets import BudgetedTask, Budgets, Lane
from celery_budgets.worker.calls import recent

if "worker" in sys.argv:  # not in the process of the tests, which imports this too
    recent.SECONDS, recent.STEP = 3.0, 0.1

app = Celery("forgetful")
budgets = Budgets(app, lanes=[Lane("lane", 1, timeout=0.2)])


@app.task(base=BudgetedTask, name="stubborn")
def stubborn():
    until = time.monotonic() + 3
    while time.monotonic() < until:
        with contextlib.suppress(Exception):
            time.sleep(0.01)
