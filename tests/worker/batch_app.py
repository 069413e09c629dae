"""A lane of eight, and calls of it that a batch is made of."""

from __future__ import annotations

import os
import time

from celery import Celery

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("batch")
if "RESULTS" in os.environ:
    app.conf.result_backend = os.environ["RESULTS"]
budgets = Budgets(app, lanes=[Lane("eight", 8, timeout=60)])


@app.task(base=BudgetedTask)
def square(number):
    if number < 0:
        raise ValueError(number)
    return number * number


@app.task(base=BudgetedTask)
def nap(seconds):
    time.sleep(seconds)
    return seconds


@app.task
def plain(seconds):
    time.sleep(seconds)
    return seconds


@app.task(base=BudgetedTask, ignore_result=True)
def silent(): ...
