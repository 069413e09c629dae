"""Two small lanes, for the tests of ``celery lanes``."""

from __future__ import annotations

import os
import time

from celery import Celery

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("lanes_app")
if "LANES_APP_VISIBILITY" in os.environ:
    seconds = int(os.environ["LANES_APP_VISIBILITY"])
    app.conf.broker_transport_options = {"visibility_timeout": seconds}
Budgets(app, lanes=[Lane("quick", 2, tools=["pid"]), Lane("slow", 1, tools=["nap"], timeout=60)])


@app.task(base=BudgetedTask, name="pid")
def pid() -> int:
    return os.getpid()


@app.task(base=BudgetedTask, name="nap")
def nap(seconds: float, until: str = "") -> float:
    """Sleep for *seconds*, or until the key *until* is there."""
    woken_at = time.monotonic() + seconds
    while until and time.monotonic() < woken_at and not app.backend.client.exists(until):
        time.sleep(0.05)
    if not until:
        time.sleep(seconds)
    return seconds
