"""Calls with idempotency keys, which write down each run of theirs."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from celery_budgets import BudgetedTask, Budgets, Lane
from celery_budgets.idempotency import run_once as idempotency
from celery_budgets.shared_state.leases import Leases

if "SPANS" in os.environ:
    import tests.worker.spans_app  # noqa: F401  sets a provider; before the app, so not current

app = Celery("keyed")
app.conf.budgets_idempotency_lease = os.environ.get("LEASE", "3s")
app.conf.budgets_idempotency_url = os.environ.get("KEYS_URL")
if "VISIBILITY" in os.environ:
    seconds = int(os.environ["VISIBILITY"])
    app.conf.broker_transport_options = {"visibility_timeout": seconds}
budgets = Budgets(
    app, lanes=[Lane("keyed", 4, timeout=60), Lane("once", 2, idempotent=False, timeout=60)]
)
#: SIGKILL of this very process at one point of its work, the first time that it comes there.
DIES_AT = os.environ.get("DIES_AT")


def redis():
    return app.backend.client


def running(name):
    """Note that a body has begun; fail where another of its name is at it."""
    now = redis().incr(f"now:{name}")
    redis().set(f"most:{name}", max(now, int(redis().get(f"most:{name}") or 0)))
    redis().incr(f"begun:{name}")


def ended(name):
    redis().decr(f"now:{name}")


@app.task(base=BudgetedTask, bind=True, max_kills=50)
def work(self, name, seconds):
    """Take some time, and that until it is let go; the effect is the last line."""
    redis().incr(f"begun:{name}")
    redis().set(f"working:{name}", os.getpid())
    time.sleep(seconds)
    while redis().exists(f"held:{name}"):
        time.sleep(0.02)
    with redis().pipeline(transaction=True) as pipeline:
        pipeline.delete(f"working:{name}").incr(f"effect:{name}")
        return pipeline.execute()[1]


@app.task(base=BudgetedTask)
def hold(name):
    """Run until it is let go, and say in which process."""
    running(name)
    while not redis().exists(f"go:{name}"):
        time.sleep(0.02)
    ended(name)
    return os.getpid()


@app.task(base=BudgetedTask, lane="once")
def hold_once(name):
    return hold.run(name)


@app.task(base=BudgetedTask)
def fail(name, after=""):
    """Fail the first time, when it is let go."""
    if redis().incr(f"begun:{name}") == 1:
        while after and not redis().exists(f"go:{name}"):
            time.sleep(0.02)
        raise ValueError(name, 1)
    return "well"


@app.task(base=BudgetedTask, bind=True, max_retries=1, default_retry_delay=0.2)
def again(self, name):
    """Ask to be run again, once."""
    if redis().incr(f"begun:{name}") == 1:
        raise self.retry(exc=ValueError(name))
    return self.request.retries


@app.task(base=BudgetedTask)
def add(value, more):
    return value + more


@app.task(base=BudgetedTask, bind=True)
def deadline_of(self, value):
    return self.request.budgets_deadline if hasattr(self.request, "budgets_deadline") else None


@app.task(base=BudgetedTask)
def total(values):
    return sum(values)


@app.task(base=BudgetedTask, ignore_result=True)
def silent(name):
    redis().incr(f"begun:{name}")


@app.task(base=BudgetedTask, soft="raise")
def stubborn(name):
    """Go on until told to stop."""
    running(name)
    try:
        while not redis().exists(f"go:{name}"):
            time.sleep(0.02)
    except SoftTimeLimitExceeded:
        ended(name)
        redis().incr(f"stopped:{name}")
        raise
    ended(name)
    return "well"


@app.task(base=BudgetedTask)
def deaf(name):
    """Go on whatever it is told at the soft limit."""
    redis().incr(f"begun:{name}")
    while True:
        with contextlib.suppress(SoftTimeLimitExceeded):
            if redis().exists(f"go:{name}"):
                return "well"
            time.sleep(0.2)


def _die_once(point):
    if point == DIES_AT and redis().set(f"died:{point}", 1, nx=True):
        os.kill(os.getpid(), signal.SIGKILL)


def _dying(function, before, after):
    def wrapped(*args, **kwargs):
        _die_once(before)
        value = function(*args, **kwargs)
        _die_once(after)
        return value

    return wrapped


if DIES_AT:
    Leases.take = _dying(Leases.take, "before take", "after take")
    Leases.settle = _dying(Leases.settle, "before done", "after done")
    idempotency._come_back = _dying(idempotency._come_back, "before back", "after back")
