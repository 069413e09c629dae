"""Tasks whose classes put something of their own around the body, as Flask's documentation has it.

``runs`` in Redis counts bodies; ``contexts`` the contexts that were open around them.
"""

from __future__ import annotations

import time
from contextlib import contextmanager

from celery import Celery, Task

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("overrides")
budgets = Budgets(app, lanes=[Lane("lane", 4, timeout=0.5, hard_timeout=2.5)])


@contextmanager
def app_context():
    app.backend.client.incr("contexts")
    yield


class FlaskTask(BudgetedTask):
    abstract = True

    def __call__(self, *args, **kwargs):
        with app_context():
            return self.run(*args, **kwargs)


class Context:
    def __call__(self, *args, **kwargs):
        with app_context():
            return self.run(*args, **kwargs)


class Before(Context, BudgetedTask):
    abstract = True


class ContextTask(Task):
    abstract = True

    def __call__(self, *args, **kwargs):
        with app_context():
            return super().__call__(*args, **kwargs)


class Behind(BudgetedTask, ContextTask):
    abstract = True


def busy(self):
    """Run past the soft limit; return what was left of the budget, where there was one."""
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        time.sleep(0.01)


def once(self):
    app.backend.client.incr("runs")
    time.sleep(0.2)
    return self.request.id


for base in (FlaskTask, Before, Behind):
    app.task(name=f"busy_{base.__name__}", base=base, bind=True, lane="lane", shared=False)(busy)
    app.task(name=f"once_{base.__name__}", base=base, bind=True, lane="lane", shared=False)(once)
