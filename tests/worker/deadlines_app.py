"""Calls that send others, and say how much time they have been given."""

from __future__ import annotations

import time
from contextlib import suppress

from celery import Celery, chord, group
from celery.exceptions import SoftTimeLimitExceeded

from celery_budgets import BudgetedTask, Budgets, Lane

#: Soft limit of a call that inherits nothing, seconds.
OWN = 300.0

app = Celery("deadlines")
budgets = Budgets(
    app,
    lanes=[Lane("lane", 4, timeout=OWN), Lane("early", 1, timeout=OWN, idempotent=False)],
)
task = {"base": BudgetedTask, "bind": True, "lane": "lane", "shared": False}


def left(call):
    """Return the seconds to the soft and to the hard limit."""
    return [call.remaining(), call.hard_at - time.monotonic()]


@app.task(**task)
def step(self, before, seconds):
    """Add what is left at the start to that of the steps before."""
    now = left(self.budget)
    time.sleep(seconds)
    return [*before, now]


@app.task(**task)
def telling(self, *_):
    app.backend.client.rpush("ran", self.request.id)
    return left(self.budget)


@app.task(**task, soft="warn")
def overdue(self, seconds):
    """Run past the soft deadline, and end well."""
    time.sleep(seconds)
    return "late"


@app.task(**task)
def handler(self, failed_id):
    app.backend.client.rpush("handled", failed_id)


@app.task(**task)
def failing(self, seconds):
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        raise ValueError("too late") from None


@app.task(**task)
def sending(self, how, **options):
    """Send others in one of several ways; return their ids, and what is left here."""
    signature = telling.s().set(**options)
    results = {
        "delay": lambda: [signature.delay()],
        "by_name": lambda: [app.send_task(telling.name)],
        "group": lambda: group(signature, telling.s()).apply_async().results,
        "chord": lambda: [chord([telling.s(), telling.s()], telling.s()).apply_async()],
        "chain": lambda: [(telling.s() | telling.s()).apply_async()],
        "block": lambda: _in_block(signature),
        "handling": lambda: _after_the_limit(signature),
    }[how]()
    return [result.id for result in results], left(self.budget)


def _in_block(signature):
    with budgets.call("lane", timeout=10):
        return [signature.delay()]


def _after_the_limit(signature):
    with suppress(SoftTimeLimitExceeded):
        time.sleep(60)
    return [signature.delay()]


@app.task(**task, max_retries=1)
def retrying(self, first=None):
    if not self.request.retries:
        raise self.retry((left(self.budget),), countdown=1)
    return first, left(self.budget)


@app.task(**(task | {"lane": "early"}))
def waiting(self, seconds):
    time.sleep(seconds)
    return left(self.budget)
