"""Calls that save how far they have come."""

from __future__ import annotations

import os
import time

from celery import Celery
from redis import Redis

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("saving")
budgets = Budgets(app, lanes=[Lane("lane", 2, timeout="60s"), Lane("quick", 2, timeout="2s")])
WHERE = os.environ["CELERY_RESULT_BACKEND"]
STEPS, REACHED = 10, 7


def redis():
    return Redis.from_url(WHERE, decode_responses=True)


def count(task, step):
    redis().rpush(f"steps:{task.request.id}", step)


def walk(task, hang):
    """Take ten steps and save each; in the first attempt, call *hang* after the seventh."""
    done = (task.budget.saved() or {"done": 0})["done"]
    first = redis().incr(f"attempts:{task.request.id}") == 1
    for step in range(done + 1, STEPS + 1):
        count(task, step)
        task.budget.save({"done": step})
        if first and step == REACHED:
            hang()
    return done


@app.task(base=BudgetedTask, bind=True, lane="lane")
def work(self):
    return walk(self, lambda: time.sleep(50))


@app.task(base=BudgetedTask, bind=True, lane="quick", max_kills=1)
def killed(self):
    """Reach the hard limit, at which its process is killed."""

    def hang():
        ends = time.monotonic() + 30
        while time.monotonic() < ends:
            try:
                time.sleep(30)
            except Exception:
                continue

    return walk(self, hang)


@app.task(base=BudgetedTask, bind=True, lane="lane", max_retries=1)
def retried(self):
    def again():
        raise self.retry(countdown=0)

    return walk(self, again)


@app.task(base=BudgetedTask, bind=True, lane="lane")
def failing(self):
    self.budget.save("something")
    raise KeyError("no")


@app.task(base=BudgetedTask, bind=True, lane="lane")
def lost(self):
    self.budget.save("something")
    os._exit(3)


@app.task(base=BudgetedTask, bind=True, lane="lane")
def plain(self):
    return self.request.id


@app.task(base=BudgetedTask, bind=True, lane="lane")
def saves(self, state):
    """Return what comes back of *state*."""
    self.budget.save(state)
    return self.budget.saved()
