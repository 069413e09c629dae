"""An app whose tasks tell how many Redis clients their process has made."""

from __future__ import annotations

from celery import Celery, signals
from redis import Redis

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("clients_app")
Budgets(app, lanes=[Lane("quick", 1, tools=["clients"]), Lane("slow", 1)])
made = 0
init = Redis.__init__


def counted(self, *args, **kwargs):
    global made
    made += 1
    init(self, *args, **kwargs)


@signals.celeryd_init.connect
def count_clients(**_) -> None:
    Redis.__init__ = counted


@app.task(base=BudgetedTask, name="clients")
def clients() -> int:
    return made
