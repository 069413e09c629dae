"""Pool processes that take longer to start than Celery waits for one, while a file is there."""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery, signals

from celery_budgets import BudgetedTask, Budgets, Lane

#: Seconds in which a process has to be up, and that it takes.
ALIVE, TAKES = float(os.environ.get("ALIVE", "1")), 1.5

app = Celery("slow_start")
app.conf.worker_proc_alive_timeout = ALIVE
budgets = Budgets(app, lanes=[Lane("lane", 2, timeout=30)])


@signals.worker_process_init.connect
def load_the_model(**_):
    # A process of tests that has loaded this app has workers of others, too: with an error here,
    # whose traceback the log keeps, they would not be freed.
    slow, until = os.environ.get("SLOW"), time.monotonic() + TAKES
    while slow and Path(slow).exists() and time.monotonic() < until:
        time.sleep(0.01)


@app.task(base=BudgetedTask, name="pid")
def pid():
    return os.getpid()


@app.task(base=BudgetedTask, name="die")
def die():
    os.kill(os.getpid(), 9)
