"""Calls that tell what the soft limit brought them, and calls that are retried after it."""

from __future__ import annotations

import time

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from celery_budgets import BudgetedTask, Budgets, Lane

SOFT, HARD = 0.5, 0.75

app = Celery("soft_limit")
budgets = Budgets(app, lanes=[Lane("lane", concurrency=1, timeout=SOFT)])


def nap(seconds: float = 3.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)


@app.task(base=BudgetedTask, name="caught")
def caught():
    try:
        nap()
    except SoftTimeLimitExceeded as exc:
        return list(exc.args)


@app.task(base=BudgetedTask, name="raised")
def raised():
    nap()


@app.task(base=BudgetedTask, name="stubborn")
def stubborn():
    try:
        nap()
    except SoftTimeLimitExceeded:
        nap()


@app.task(base=BudgetedTask, name="retried", bind=True, max_retries=1)
def retried(self):
    try:
        nap(0 if self.request.retries else 3)
    except SoftTimeLimitExceeded as exc:
        raise self.retry(exc=exc, countdown=0) from None
    return self.request.retries


@app.task(
    base=BudgetedTask, name="retried_by_itself", bind=True, max_retries=1, retry_backoff=False,
    autoretry_for=(SoftTimeLimitExceeded,), default_retry_delay=0,
)  # fmt: skip
def retried_by_itself(self):
    nap(0 if self.request.retries else 3)
    return self.request.retries


@app.task(base=BudgetedTask, name="limits", bind=True)
def limits(self):
    return list(self.budget.limits)
