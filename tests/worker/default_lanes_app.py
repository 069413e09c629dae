"""An app of the five default lanes, whose calls say when, where and how they ran."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from celery_budgets import BudgetedTask, Budgets

#: Longest that a held call waits to be let go, seconds: for a test that fails.
HELD_SECONDS = 60.0

app = Celery("default_lanes")
if "VISIBILITY" in os.environ:
    app.conf.broker_transport_options = {"visibility_timeout": float(os.environ["VISIBILITY"])}
budgets = Budgets(app)


def redis() -> Any:
    return app.backend.client


def held(self: Any, go: str) -> tuple[float, float, int, str]:
    """Run until the key *go* is there; return (start, end, pid, queue)."""
    started = time.time()
    queue = self.request.delivery_info["routing_key"]
    redis().rpush(f"{go}:started", queue)
    until = time.monotonic() + HELD_SECONDS
    while not redis().exists(go) and time.monotonic() < until:
        time.sleep(0.05)
    return started, time.time(), os.getpid(), queue


for tool in ("word_count", "fs_read", "fs_write", "critics_run", "forecast_model"):
    app.task(base=BudgetedTask, bind=True, name=tool, shared=False)(held)
