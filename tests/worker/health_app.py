"""A worker that can be told to do no work any more, in several ways, and to go on answering."""

from __future__ import annotations

import time

from celery import Celery
from celery.worker.control import control_command

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("health")
Budgets(app, lanes=[Lane("lane", 2), Lane("other", 1), Lane("limited", 2, fleet=1)])


@app.task(base=BudgetedTask, lane="lane")
def nap(seconds):
    time.sleep(seconds)
    return "done"


@app.task(base=BudgetedTask, lane="limited")
def limited(seconds):
    time.sleep(seconds)
    return "done"


@app.task(base=BudgetedTask, lane="other", rate_limit="1/m")
def seldom():
    return "done"


@control_command()
def lose_consumer(state, **_):
    """Stop consuming below Celery, as if the broker had lost the consumer."""
    state.consumer.task_consumer.cancel()
    return {"ok": "lost"}


@control_command()
def take_nothing(state, **_):
    """Leave what waits where it is, though it seems to be consumed."""
    consumer = state.consumer.task_consumer
    for each in list(consumer._lanes.values()) or [consumer]:
        for tag in each._active_tags.values():
            each.channel.basic_cancel(tag)  # without telling kombu's consumer
    return {"ok": "taken"}
