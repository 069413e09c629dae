"""Bodies that do something to signals, and one that says when it ran.

Each leaves in Redis, in ``marks``, what happened: ``TASK_ID WHAT SECONDS`` by the wall clock.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import worker_process_init

from celery_budgets import BudgetedTask, Budgets, Lane

#: Seconds that a body works on after a signal that it does not die of.
WORKS_ON = 1.0

app = Celery("signals")
budgets = Budgets(
    app,
    lanes=[Lane("one", 1, timeout=4.0), Lane("short", 1, timeout=0.5, hard_timeout=6.0)],
)


@worker_process_init.connect
def take_the_signals(**_):
    """What a library may do as soon as a process is there."""
    for name in ("SIGUSR1", "SIGVTALRM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def mark(task, what):
    app.backend.client.rpush("marks", f"{task.request.id} {what} {time.time():.3f}")


def work(seconds):
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))


@app.task(base=BudgetedTask, bind=True, lane="one")
def tidies_up(self):
    """Do what plain Celery lets a body do that is revoked by SIGUSR1."""
    mark(self, "began")
    try:
        work(12)
    except SoftTimeLimitExceeded:
        mark(self, "told")
        work(WORKS_ON)
        mark(self, "ended")
        raise


@app.task(base=BudgetedTask, bind=True, lane="one")
def goes_on(self, ignored=()):
    """Outlive every signal that can be outlived."""
    for name in ignored:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    mark(self, "began")
    try:
        work(2 * WORKS_ON)
    except SoftTimeLimitExceeded:
        mark(self, "told")
        work(WORKS_ON)
    mark(self, "ended")
    for name in ignored:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    return os.getpid()


@app.task(base=BudgetedTask, bind=True, lane="one")
def outlives_all(self):
    mark(self, "began")
    try:
        work(12)
    except BaseException:
        work(WORKS_ON)
        mark(self, "ended")


@app.task(base=BudgetedTask, bind=True, lane="one", timeout=1.0)
def is_stopped(self):
    mark(self, "began")
    work(12)


@app.task(base=BudgetedTask, bind=True, lane="one")
def next_one(self):
    mark(self, "began")
    return os.getpid()


@app.task(base=BudgetedTask, bind=True, lane="one")
def dies(self):
    os._exit(3)


def takes_it(signum):
    signal.signal(signum, lambda *_: None)


def ignores_it(signum):
    signal.signal(signum, signal.SIG_IGN)


def resets_it(signum):
    signal.signal(signum, signal.SIG_DFL)


def blocks_it(signum):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signum})


def takes_it_in_c(signum):
    """Leave Python's own table of handlers as it is."""
    faulthandler.register(signum, file=sys.__stderr__)


def restarts_calls(signum):
    signal.siginterrupt(signum, False)


WAYS = (takes_it, ignores_it, resets_it, blocks_it, takes_it_in_c, restarts_calls)


@app.task(base=BudgetedTask, bind=True, lane="short")
def does(self, way, seconds=0.0):
    """Do something to the signals by which calls are interrupted, and work on."""
    for name in ("SIGUSR1", "SIGVTALRM"):
        next(one for one in WAYS if one.__name__ == way)(getattr(signal, name))
    work(seconds)
    return os.getpid()


@app.task(base=BudgetedTask, bind=True, lane="short")
def sleeps(self):
    """Run past the soft limit in one system call."""
    began = time.monotonic()
    try:
        time.sleep(3.0)
    except SoftTimeLimitExceeded:
        return os.getpid(), time.monotonic() - began
    return os.getpid(), None
