"""Calls that run out of memory, as Python itself tells it."""

from __future__ import annotations

import os

from celery import Celery

from celery_budgets import BudgetedTask, Budgets

app = Celery("memory_error")
budgets = Budgets(app)
task = {"base": BudgetedTask, "lane": "critic", "shared": False}


@app.task(**task, name="raising")
def raising() -> None:
    raise MemoryError("by hand")


@app.task(**task, name="too_much")
def too_much() -> int:
    """Ask for more than there is addressable memory: the interpreter refuses."""
    return len(bytearray(2**62))


@app.task(**task, name="handling")
def handling() -> str:
    try:
        return str(too_much.run())
    except MemoryError:
        return "handled"


@app.task(**task, name="pid")
def pid() -> int:
    return os.getpid()
