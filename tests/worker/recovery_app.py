"""Calls that a pool loses: by remote control, as no pool should."""

from __future__ import annotations

import time
from types import SimpleNamespace

from celery import Celery
from celery.worker.control import control_command

from celery_budgets import BudgetedTask, Budgets, Lane
from celery_budgets.worker.runtime import runtime_of

app = Celery("recovery")
budgets = Budgets(
    app, lanes=[Lane("narrow", concurrency=1, timeout=60), Lane("other", concurrency=1)]
)


@app.task(base=BudgetedTask, lane="narrow", name="nap")
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@control_command()
def lose_calls(state):
    """Have nobody hear of the end of what runs now."""
    lost = list(runtime_of(state.app).roster.in_hand.values())
    for request in lost:
        if request.job is None:
            request._apply_result().discard()
        else:
            request.job = SimpleNamespace(dead=True)
            # As of a callback that is never called.
            request.on_success = request.on_failure = lambda *args, **kwargs: None
    return len(lost)
