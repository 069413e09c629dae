"""The app whose workers are replaced under load: calls that note how far they were.

``WAY`` is ``budgets``, or one of plain Celery: ``soft`` has a soft shutdown of ``GRACE`` seconds,
``warm`` waits for all calls.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task, signals

from celery_budgets import BudgetedTask, Budgets, Lane

WAY = os.environ.get("WAY", "budgets")
GRACE = float(os.environ.get("GRACE", "30"))
SLOTS = 4
#: Time between two notes, seconds.
NOTE = 0.1

app = Celery("restart")
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    worker_concurrency=SLOTS,
    task_ignore_result=True,
    task_default_queue="lane",
    broker_connection_retry_on_startup=True,
    # Above the longest call: plain Celery would start it twice.
    broker_transport_options={"visibility_timeout": float(os.environ.get("VISIBLE", "120"))},
)
if WAY == "soft":
    app.conf.worker_soft_shutdown_timeout = GRACE
if WAY == "budgets":
    app.conf.budgets_stop_grace = GRACE
    Budgets(app, lanes=[Lane("lane", SLOTS, timeout=300)])


@signals.worker_ready.connect
def say_ready(sender: Any, **_: Any) -> None:
    app.backend.client.set(f"ready:{sender.hostname.partition('@')[0]}", 1)


def run(self: Any, number: int, seconds: float) -> None:
    """Take *seconds*; note each begin with the worker, the time spent, and each end."""
    redis, began = app.backend.client, time.monotonic()
    worker = self.request.hostname.partition("@")[0]
    redis.rpush(f"began:{number}", f"{worker} {time.time()}")
    noted = began
    while (now := time.monotonic()) < began + seconds:
        time.sleep(min(NOTE, began + seconds - now))
        redis.incrbyfloat("spent", time.monotonic() - noted)
        noted = time.monotonic()
    redis.rpush(f"ended:{number}", time.time())


for name in ("quick", "usual", "long"):
    app.task(base=BudgetedTask if WAY == "budgets" else Task, name=name, bind=True)(run)
