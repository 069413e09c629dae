"""Calls that wait for each of the reasons that there are, and hold a slot until they are let go."""

from __future__ import annotations

import os
import time

from celery import Celery, Task

from celery_budgets import BudgetedTask, Budgets, Lane

CALLS = int(os.environ.get("WHY_CALLS", "2"))

app = Celery("why")
app.conf.budgets_idempotency_lease = "60s"
app.conf.budgets_global_concurrency = 64
app.conf.worker_proc_alive_timeout = 30
budgets = Budgets(
    app,
    lanes=[
        Lane("work", CALLS + 2, timeout=600),
        Lane("rated", CALLS, timeout=600),
        Lane("narrow", 1, timeout=600),
        Lane("paused", 1, timeout=600),
        Lane("ahead", 1, timeout=600),
        Lane("greedy", 1, timeout=600),
        Lane("starved", CALLS, timeout=600),
        Lane("tight", 1, timeout=600),
        Lane("lonely", 1, timeout=600),
        Lane("steady", 2, timeout=600),
    ],
)


def redis():
    return app.backend.client


@app.task(base=BudgetedTask, lane="work")
def hold(name):
    """Run until it is let go."""
    redis().incr(f"begun:{name}")
    while not redis().exists(f"go:{name}"):
        time.sleep(0.05)


@app.task(base=BudgetedTask, lane="work", ignore_result=True)
def quick(seconds=0.0):
    time.sleep(seconds)


@app.task(base=BudgetedTask, lane="work", bind=True, max_retries=1)
def later(self):
    raise self.retry(countdown=3600)


@app.task(base=BudgetedTask, lane="work")
def fails():
    raise ValueError("on purpose")


@app.task(base=Task)
def plain(name):
    hold.run(name)


@app.task(base=BudgetedTask, lane="rated", rate_limit="1/h")
def rated():
    """Run, once an hour."""


@app.task(base=BudgetedTask, lane="steady")
def beat(seconds):
    """Take some time; the result is when it began."""
    began = time.time()
    time.sleep(seconds)
    return began
