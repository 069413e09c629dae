"""Calls that are running when a signal reaches their whole process group."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time

from celery import Celery
from redis import Redis

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("group_stop")
budgets = Budgets(app, lanes=[Lane("lane", 2)])
WHERE = os.environ["CELERY_RESULT_BACKEND"]


def count(task, what="runs"):
    """Count the runs of a call, or its effects, and all of them; return how many it has had."""
    with Redis.from_url(WHERE).pipeline() as pipeline:
        return pipeline.incr(f"{what}:{task.request.id}").incr(what).execute()[0]


@app.task(base=BudgetedTask, bind=True, lane="lane")
def work(self, seconds):
    """Take some time; the effect comes last."""
    count(self)
    time.sleep(seconds)
    count(self, "effects")
    return "done"


@app.task(bind=True, queue="lane")
def plain(self, seconds):
    count(self)
    time.sleep(seconds)
    return "done"


@app.task(base=BudgetedTask, bind=True, lane="lane")
def with_a_handler_of_its_own(self, seconds):
    """End its process at SIGTERM, as a library may."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(-(256 - signal.SIGTERM)))
    if count(self) > 1:
        return "done"
    time.sleep(seconds)
    return "never"


def stay(up, let_go):
    up.send(1)
    let_go.recv()
    # Python joins the pool's threads, which a fork does not have (concurrent.futures.thread).
    os._exit(0)


@app.task(base=BudgetedTask, bind=True, lane="lane")
def with_forks(self, names, own_handler=False):
    """Return how forks of this process end, one for each signal."""
    if own_handler:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    context = multiprocessing.get_context("fork")
    multiprocessing.current_process()._config["daemon"] = False
    ends = []
    for name in names:
        is_up, up = context.Pipe(duplex=False)
        let_go, may_go = context.Pipe(duplex=False)
        child = context.Process(target=stay, args=(up, let_go))
        child.start()
        is_up.recv()
        os.kill(child.pid, getattr(signal, name))
        may_go.send(1)
        child.join(10)
        ends.append(child.exitcode)
    return ends
