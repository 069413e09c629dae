"""The lane built with budgets."""

from __future__ import annotations

from celery import Celery, signals

from celery_budgets import BudgetedTask, Budgets, Lane
from tests.benchmarks.peer_bodies import BODIES, HARD, MAX_RSS, SOFT, redis

app = Celery("peer")
app.conf.task_ignore_result = True
app.conf.task_store_errors_even_if_ignored = True
Budgets(app, lanes=[Lane("lane", 2, timeout=SOFT, hard_timeout=HARD, max_rss=MAX_RSS)])
for body in BODIES:
    app.task(base=BudgetedTask, name=body.__name__)(body)


@signals.worker_ready.connect
def say_ready(sender, **_):
    redis.set(f"ready:{sender.hostname.partition('@')[0]}", 1)
