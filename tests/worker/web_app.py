"""Lanes that have everything to show: calls that end in each way, wait, and are killed."""

from __future__ import annotations

import time

from celery import Celery

from celery_budgets import BudgetedTask, Budgets, Lane, Limit

#: The name of a task is text, whatever stands in it.
HOSTILE = "<img src=x onerror=document.title='taken'>"

app = Celery("shop", task_cls=BudgetedTask)
budgets = Budgets(
    app,
    lanes=[
        Lane("quick", 4, slo="2s"),
        Lane("slow", 2, timeout=60),
        Lane("strict", 1, timeout=0.3),
        Lane("unserved", 1),
    ],
    limits=[Limit("shelf", 2), Limit("customer", 1, key="customer", rate="100/s")],
)


@app.task(lane="quick", name="ask")
def ask(seconds: float = 0.0) -> None:
    time.sleep(seconds)


@app.task(lane="quick", name="fail")
def fail() -> None:
    raise ValueError("as it was asked to")


@app.task(lane="quick", name=HOSTILE)
def hostile() -> None:
    """Has a name with markup in it."""


@app.task(lane="slow", name="nap")
def nap(seconds: float) -> None:
    """Sleep for *seconds*, a little at a time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)


@app.task(lane="quick", name="serve", limits=["shelf", "customer"])
def serve(customer: str, seconds: float) -> None:
    nap.run(seconds)


@app.task(lane="strict", name="hang")
def hang() -> None:
    """Ignore the soft limit, so that the hard one kills it."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            time.sleep(10)
        except Exception:
            continue
