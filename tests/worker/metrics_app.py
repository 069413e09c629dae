"""Calls that end in different ways, soon: for the tests of what is shown of them."""

from __future__ import annotations

import os
import time

from celery import Celery
from celery.exceptions import Reject

from celery_budgets import BudgetedTask, Budgets, Lane, Limit, Throttled

#: Of a worker whose gate closes at its first look and stays so, and whose calls fail for it.
CLOSED = {"CELERY_BUDGETS_MAX_WORKER_RSS": "20MiB", "CELERY_BUDGETS_REJECTION": "fail"}

app = Celery("metrics", task_cls=BudgetedTask)
app.conf.update(task_track_started=True)
Budgets(
    app,
    lanes=[Lane("quick", 2, slo="5s"), Lane("slow", 1, timeout=0.5), Lane("closed", 1)],
    limits=[Limit("api", 2)],
)


@app.task(lane="quick", limits=["api"])
def succeed() -> int:
    return os.getpid()


@app.task(bind=True, lane="quick", limits=["api"])
def throttled(self) -> None:
    """Is told to come again, the first time."""
    if app.backend.client.incr(f"tried:{self.request.id}") == 1:
        raise Throttled("api", retry_after=0.2)


@app.task(lane="quick")
def fail() -> None:
    raise ValueError("as it was asked to")


@app.task(lane="quick")
def reject() -> None:
    raise Reject("as it was asked to", requeue=False)


@app.task(lane="slow")
def heed_soft_limit() -> None:
    time.sleep(5)


@app.task(lane="slow")
def ignore_soft_limit() -> None:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            time.sleep(5)
        except Exception:
            continue


@app.task(lane="closed")
def turned_away() -> None:
    """Never runs where the gate of its lane is closed."""
