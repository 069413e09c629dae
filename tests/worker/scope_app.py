"""Calls of five lanes that end in different ways, and calls that send calls."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from celery_budgets import BudgetedTask, Budgets, Lane

LANES = ("one", "two", "three", "four", "five")

app = Celery("scope")
budgets = Budgets(app, lanes=[Lane(name, 2, timeout=60) for name in LANES])


def redis():
    return app.backend.client


@app.task(base=BudgetedTask)
def act(how):
    """End as *how* says."""
    if how == "fail":
        raise ValueError(how)
    if how == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    while how == "hard":
        with contextlib.suppress(SoftTimeLimitExceeded):
            time.sleep(60)
    return how


@app.task(base=BudgetedTask, bind=True)
def hold(self, name):
    """Run until it is let go."""
    redis().incr(f"begun:{name}")
    while not redis().exists(f"go:{name}"):
        time.sleep(0.02)
    return getattr(self.request, "budgets_scope", None)


@app.task(base=BudgetedTask, bind=True)
def tell(self):
    """Return the scope and the deadline that the message carries."""
    return getattr(self.request, "budgets_scope", None), self.request.budgets_deadline


@app.task(base=BudgetedTask, bind=True)
def tree(self, depth):
    """Send more of its kind, one of them inside a scope of its own."""
    if depth:
        tree.delay(depth - 1)
        with budgets.scope("branch"):
            tree.delay(depth - 1)
    return getattr(self.request, "budgets_scope", None)
