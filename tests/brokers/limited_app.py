"""Calls with limits of each kind, whose bodies write down in Redis when they begin and end.

What they write is one stream: its order is that in which Redis has heard of it, by one clock. It
is not the Redis of the limits, which a test may stop.
"""

from __future__ import annotations

import os
import time
from functools import cache

from celery import Celery
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from celery_budgets import BudgetedTask, Budgets, Lane, Limit
from tests.support.clocks import put_clock_forward

#: Calls at once: of all together, and of one tenant.
MOST, MOST_OF_TENANT = 6, 2
#: Calls per second, and how many more where there were fewer.
RATE, BURST = 40, 20

if "CLOCK_AHEAD" in os.environ:
    put_clock_forward(float(os.environ["CLOCK_AHEAD"]))

app = Celery("limited", task_cls=BudgetedTask)
app.conf.budgets_idempotency_lease = os.environ.get("LEASE", "5s")
app.conf.budgets_idempotency_url = os.environ.get("LIMITS_URL")
app.conf.task_ignore_result = True
# More than the clocks of workers differ.
app.conf.broker_transport_options = {"visibility_timeout": 12}
budgets = Budgets(
    app,
    lanes=[Lane("limited", 4)],
    limits=[
        Limit("api", MOST),
        Limit("tenant", MOST_OF_TENANT, key="tenant"),
        Limit("pace", rate=f"{RATE}/s", burst=BURST),
    ],
)


@cache
def redis():
    return Redis.from_url(app.conf.result_backend, retry=Retry(ConstantBackoff(0.05), 100))


def work(limits, name, seconds):
    """Run for *seconds*, in all that is between two entries of the stream."""
    pid = os.getpid()
    redis().xadd("events", {"what": "began", "name": name, "pid": pid, "limits": limits})
    done = False
    try:
        time.sleep(seconds)
        done = True
    finally:
        with redis().pipeline() as pipe:
            pipe.xadd("events", {"what": "ended", "name": name, "pid": pid, "done": int(done)})
            pipe.sadd("done" if done else "cut off", name)
            pipe.execute()


@app.task(lane="limited", limits=["api"], max_kills=50)
def plain(name, tenant, seconds):
    work("api", name, seconds)


@app.task(lane="limited", limits=["tenant"], max_kills=50)
def keyed(name, tenant, seconds):
    work(f"tenant:{tenant}", name, seconds)


@app.task(lane="limited", limits=["pace"], max_kills=50)
def paced(name, tenant, seconds):
    work("pace", name, seconds)


@app.task(lane="limited", limits=["api", "tenant", "pace"], max_kills=50)
def all_three(name, tenant, seconds):
    work(f"api tenant:{tenant} pace", name, seconds)
