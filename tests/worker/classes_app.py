"""Tasks with request classes of the program's own, kind and unkind ones."""

from __future__ import annotations

import os
import time

from celery import Celery, Task
from celery.worker.request import Request

from celery_budgets import BudgetedTask, Budgets, Lane
from celery_budgets.worker.request import BudgetedRequest

app = Celery("classes")
budgets = Budgets(app, lanes=[Lane("lane", 1, timeout=0.3, hard_timeout=1.0)])
NAME = "tests.worker.classes_app"


def told(request, what):
    app.backend.client.rpush(f"told:{request.id}", what)


class Kind(Request):
    """As in Celery's documentation."""

    def on_accepted(self, pid, time_accepted):
        super().on_accepted(pid, time_accepted)
        told(self, "accepted")

    def on_timeout(self, soft, timeout):
        super().on_timeout(soft, timeout)
        told(self, "soft" if soft else "hard")

    def on_failure(self, exc_info, send_failed_event=True, return_ok=False):
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        told(self, "failed")


class Unkind(Request):
    """Leaves out ``super()``, or goes past it."""

    def __init__(self, *args, **kwargs):
        Request.__init__(self, *args, **kwargs)

    def __init_subclass__(cls, **kwargs):
        cls.noted = True

    def on_accepted(self, pid, time_accepted):
        Request.on_accepted(self, pid, time_accepted)

    def on_timeout(self, soft, timeout):
        told(self, "soft" if soft else "hard")

    def on_failure(self, exc_info, send_failed_event=True, return_ok=False):
        told(self, "failed")
        raise RuntimeError("theirs")


class Derived(BudgetedRequest):
    """Of this package's class."""

    def on_failure(self, exc_info, send_failed_event=True, return_ok=False):
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        told(self, "failed")


class WithRequest(Task):
    """A base class of the program's, of all its tasks."""

    abstract = True
    Request = Kind


class Both(WithRequest, BudgetedTask):
    abstract = True


def body(what):
    if what == "fail":
        raise ValueError(what)
    until = time.monotonic() + {"soft": 20, "hard": 20}.get(what, 0)
    while (left := until - time.monotonic()) > 0:
        try:
            time.sleep(min(left, 0.02))
        except Exception:
            if what == "soft":
                raise
    if what == "die":
        os._exit(3)
    return what


#: By the name of a task, what it is made of.
TASKS = {
    "kind": {"base": BudgetedTask, "Request": Kind},
    "by_address": {"base": BudgetedTask, "Request": f"{NAME}:Kind"},
    "inherited": {"base": Both},
    "unkind": {"base": BudgetedTask, "Request": Unkind},
    "derived": {"base": BudgetedTask, "Request": Derived},
    "none": {"base": BudgetedTask},
}
for name, options in TASKS.items():
    app.task(name=name, lane="lane", shared=False, **options)(body)
