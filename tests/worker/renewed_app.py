"""Calls that take longer than the visibility timeout, and count each run of theirs."""

from __future__ import annotations

import ctypes
import os
import time

from celery import Celery

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("renewed")
app.conf.broker_transport_options = {"visibility_timeout": float(os.environ.get("VISIBLE", 2))}
app.conf.worker_send_task_events = False
app.conf.budgets_idempotency_lease = "1s"
app.conf.budgets_redis_transport = "budgets"
Budgets(app, lanes=[Lane("long", int(os.environ.get("SLOTS", 12)), timeout=300)])


def redis():
    return app.backend.client


@app.task(base=BudgetedTask)
def nap(name, seconds):
    """Note the begin and the end, and sleep in between."""
    redis().incr(f"begun:{name}")
    time.sleep(seconds)
    redis().incr(f"ended:{name}")
    return name


@app.task(base=BudgetedTask)
def work(name, seconds):
    """Compute in Python for all of the time."""
    redis().incr(f"begun:{name}")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))
    redis().incr(f"ended:{name}")
    return name


@app.task(base=BudgetedTask)
def hold(name, seconds):
    """Keep the interpreter lock for all of the time, as C code may."""
    redis().incr(f"begun:{name}")
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))
    redis().incr(f"ended:{name}")
    return name


@app.task
def plain(name, seconds):
    """As :func:`nap`, without a budget."""
    return nap.run(name, seconds)
