"""Calls that a worker may have to give up when it stops."""

from __future__ import annotations

import ctypes
import os
import time

from celery import Celery
from redis import Redis

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("draining")
budgets = Budgets(app, lanes=[Lane("lane", 4, timeout="100s"), Lane("wide", 16, timeout="100s")])
WHERE = os.environ["CELERY_RESULT_BACKEND"]


def redis():
    return Redis.from_url(WHERE, decode_responses=True)


def begin(task):
    """Note that the call begins, and where; return how often it has."""
    redis().rpush(f"began:{task.request.id}", task.request.hostname)
    return redis().llen(f"began:{task.request.id}")


@app.task(base=BudgetedTask, bind=True, lane="lane")
def long(self, seconds):
    if begin(self) == 1:
        time.sleep(seconds)
    return "done"


@app.task(base=BudgetedTask, bind=True, lane="lane")
def usual(self, seconds):
    """Take as long as it is told, which is little, mostly."""
    if begin(self) == 1:
        time.sleep(seconds)
    return "done"


@app.task(base=BudgetedTask, bind=True, lane="lane", idempotent=False)
def once(self, seconds):
    begin(self)
    time.sleep(seconds)
    return "done"


@app.task(base=BudgetedTask, bind=True, lane="wide")
def in_c_code(self, seconds):
    """Hold the interpreter lock, so that only SIGKILL ends it."""
    if begin(self) == 1:
        ctypes.PyDLL(None).sleep(int(seconds))
    return "done"
