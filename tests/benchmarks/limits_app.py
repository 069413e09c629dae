"""Calls of one length, in every ``WAY``: with no limit over the fleet, with one, one by key."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, signals
from kombu import Queue

from celery_budgets import BudgetedTask, Budgets, Lane, Limit

WAY = os.environ.get("WAY", "free")
SLOTS = int(os.environ.get("SLOTS", "20"))
LIMIT = int(os.environ.get("LIMIT", "40"))

app = Celery("limits")
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    task_queues=[Queue("lane")],
    task_default_queue="lane",
    budgets_tracing=False,
    budgets_max_abandoned_threads=1000,
    budgets_global_concurrency=1000,
)
Budgets(
    app,
    lanes=[Lane("lane", SLOTS, max_rss="2GiB")],
    limits=[Limit("all", LIMIT), Limit("tenant", LIMIT, key="tenant")],
)


@signals.worker_ready.connect
def say_ready(sender: Any, **_: Any) -> None:
    app.backend.client.set(f"ready:{sender.hostname.partition('@')[0]}", 1)


@app.task(
    base=BudgetedTask, name="work",
    limits={"free": [], "limited": ["all"], "keyed": ["tenant"]}[WAY],
)  # fmt: skip
def work(tenant: str, sent: float, seconds: float) -> None:
    """Take some time; leave when it began and ended, and how long a call of its tenant waited."""
    began = time.time()
    time.sleep(seconds)
    with app.backend.client.pipeline(transaction=False) as pipe:
        pipe.rpush("began", began)
        pipe.rpush(f"waits:{tenant}", began - sent)
        pipe.rpush("ended", time.time())
        pipe.execute()
