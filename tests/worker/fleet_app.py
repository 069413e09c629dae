"""Lanes with a limit over all workers, whose calls write down when they ran, by Redis' clock."""

from __future__ import annotations

import os
import signal
import time
from functools import cache

from celery import Celery
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from celery_budgets import BudgetedTask, Budgets, Lane, Limit, Throttled

app = Celery("fleet")
app.conf.budgets_idempotency_lease = os.environ.get("LEASE", "3s")
if "VISIBILITY" in os.environ:
    app.conf.broker_transport_options = {"visibility_timeout": int(os.environ["VISIBILITY"])}
if "FLEET" in os.environ:
    app.conf.budgets_fleet_concurrency = int(os.environ["FLEET"])
app.conf.budgets_priorities = "PRIORITIES" in os.environ
budgets = Budgets(
    app,
    lanes=[Lane("free", 2), Lane("shared", 4, fleet=2), Lane("one", 2, fleet=1)],
    limits=[
        Limit("api", 1),
        Limit("slowly", rate="5/s", burst=1),
        Limit("four", 4),
        Limit("tenant", 1, key="tenant"),
        Limit("dependency", 4),
        Limit("paced", rate="5/s", burst=1, key="tenant"),
        Limit("account", 3, key="tenant"),
    ],
)


@cache
def redis():
    """Return a client that tries again: a test may cut its connections."""
    url = app.conf.result_backend
    return Redis.from_url(url, retry=Retry(ConstantBackoff(0.05), 20), protocol=2)


def now():
    seconds, microseconds = redis().time()
    return seconds + microseconds / 1e6


def ran(lane):
    """Return when each body began and ended, in the order of their beginning."""
    spans = [span.decode().split(" ", 2) for span in redis().lrange(f"ran:{lane}", 0, -1)]
    return sorted((float(began), float(ended), name) for began, ended, name in spans)


def cut_short(lane, killed_at):
    """Return the same of bodies that have not ended: their processes were killed then."""
    spans = []
    for which, began in redis().hgetall(f"begun:{lane}").items():
        name, pid = which.decode().rsplit(" ", 1)
        spans.append((float(began), killed_at[int(pid)], name))
    return spans


def work(lane, name, seconds):
    began = now()
    redis().hset(f"begun:{lane}", f"{name} {os.getpid()}", began)
    redis().sadd(f"running:{lane}", name)
    time.sleep(seconds)
    redis().srem(f"running:{lane}", name)
    with redis().pipeline() as pipe:
        pipe.hdel(f"begun:{lane}", f"{name} {os.getpid()}")
        pipe.rpush(f"ran:{lane}", f"{began} {now()} {name}")
        pipe.execute()
    return name


@app.task(base=BudgetedTask, lane="free")
def free(name, seconds=0.0):
    return work("free", name, seconds)


@app.task(base=BudgetedTask, lane="shared")
def shared(name, seconds=0.1):
    return work("shared", name, seconds)


@app.task(base=BudgetedTask, lane="free", limits=["api"])
def api(name, seconds=0.1):
    return work("api", name, seconds)


@app.task(base=BudgetedTask, lane="free", limits=["slowly"])
def slowly(name):
    return work("slowly", name, 0.0)


@app.task(base=BudgetedTask, lane="one")
def one(name, seconds=0.1):
    return work("one", name, seconds)


@app.task(base=BudgetedTask, lane="free", limits=["four"], weight=2)
def heavy(name, seconds=0.3):
    return work("heavy", name, seconds)


@app.task(base=BudgetedTask, lane="free", limits=["tenant"])
def of_tenant(tenant, name, seconds=0.2):
    return work(f"tenant:{tenant}", name, seconds)


@app.task(base=BudgetedTask, bind=True, lane="free", limits=["four", "tenant"], max_kills=5)
def comes_again(self, tenant, name):
    """Be retried, then lose the process, and then end; note each time what is held."""
    held = "celery-budgets:{limits}:held:"
    keys = [key.decode() for key in redis().scan_iter(f"{held}tenant:*")]
    places = redis().zcard(f"{held}four:")
    time_of = redis().rpush(f"held:{name}", f"{places} {' '.join(keys).replace(held, '')}")
    if time_of == 1:
        raise self.retry(countdown=0.1)
    if time_of == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def reach(name, seconds):
    """Reach what lets nobody in for a while: what it says to the first is how long."""
    opens = redis().get("opens") or b"0"
    redis().rpush("reached", f"{now()} {name}")
    if now() < float(opens):
        raise Throttled("dependency", retry_after=seconds)
    return name


@app.task(base=BudgetedTask, lane="free", limits=["dependency"], max_retries=0)
def depends(name, seconds=1.0):
    return reach(name, seconds)


@app.task(base=BudgetedTask, lane="free", autoretry_for=(Exception,), max_retries=0)
def depends_in_block(name, seconds=1.0):
    with budgets.call("free", limits=["dependency"], wait=60):
        return reach(name, seconds)


@app.task(base=BudgetedTask, lane="free")
def mistaken(name):
    raise Throttled("dependancy", retry_after=1)


@app.task(base=BudgetedTask, lane="free", limits=["paced"])
def paced(tenant, name):
    return work(f"paced:{tenant}", name, 0.0)


@app.task(base=BudgetedTask, lane="free", limits=["api", "account"])
def through(tenant, name, seconds=0.1):
    """Of many accounts, through one thing that lets in one at a time."""
    return work("through", f"{tenant}:{name}", seconds)
