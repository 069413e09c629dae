"""The app whose calls are measured, in every ``WAY``: with and without budgets and telemetry.

Plain ways have what ``Budgets`` sets anyway: late acknowledgement and a prefetch of 1. Only
``celery_defaults`` leaves both as Celery has them.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task, signals
from celery.exceptions import SoftTimeLimitExceeded
from kombu import Queue

from celery_budgets import BudgetedTask, Budgets, Lane

WAY = os.environ.get("WAY", "budgeted")
BUDGETED = WAY in ("budgeted", "everything")
#: Has the worker budgets? ``beside``: and yet its tasks are plain.
WITH_BUDGETS = BUDGETED or WAY == "beside"
#: Limits of the task that overruns them, seconds.
SOFT, HARD = 0.5, 0.75
#: How many lanes, or queues of a plain way: more than are used, to see what they cost.
LANES = int(os.environ.get("LANES", "2"))
NAMES = ("lane", "slow", *(f"more{number}" for number in range(LANES - 2)))[:LANES]

app = Celery("calls")
app.conf.update(
    task_acks_late=WAY != "celery_defaults",
    worker_prefetch_multiplier=4 if WAY == "celery_defaults" else 1,
    worker_hijack_root_logger=WAY != "everything",
    task_ignore_result=True,
    task_store_errors_even_if_ignored=True,
    broker_connection_retry_on_startup=True,
    task_queues=[Queue(name) for name in NAMES],
    task_default_queue="lane",
    budgets_tracing=WAY == "everything",
    budgets_json_logs=WAY == "everything",
    budgets_metrics_port=0 if WAY == "everything" else None,
    budgets_global_concurrency=1000,
    budgets_max_worker_rss=os.environ.get("MAX_WORKER_RSS"),
    budgets_max_abandoned_threads=1000,
)
if WAY == "limited":
    app.conf.update(task_soft_time_limit=300, task_time_limit=450)
if WAY in ("instrumented", "everything"):
    from tests.benchmarks import exporters

    exporters.provide()
if WITH_BUDGETS:
    SLOTS = int(os.environ.get("SLOTS", "16"))
    #: Slots of the lane of slow calls, where they are not as many as the others'.
    SLOW_SLOTS = int(os.environ.get("SLOW_SLOTS", SLOTS))
    Budgets(
        app,
        lanes=[
            Lane(name, SLOW_SLOTS if name == "slow" else SLOTS, max_rss="2GiB") for name in NAMES
        ],
    )


def limits(soft: float, hard: float) -> dict[str, Any]:
    """Return a pair of limits, seconds, in the words of the way."""
    if BUDGETED:
        return {"timeout": soft, "hard_timeout": hard}
    return {"soft_time_limit": soft, "time_limit": hard}


def task(**options: Any) -> Any:
    return app.task(base=BudgetedTask if BUDGETED else Task, **options)


@signals.worker_ready.connect
def say_ready(sender: Any, **_: Any) -> None:
    app.backend.client.set(f"ready:{sender.hostname.partition('@')[0]}", 1)


def note(key: str, value: float) -> None:
    app.backend.client.rpush(key, value)


@task(name="noop")
def noop() -> None:
    pass


@task(name="short")
def short(sent: float) -> None:
    """Leave how long the call has waited, seconds."""
    note("waits", time.time() - sent)


@task(name="slow")
def slow(seconds: float) -> None:
    time.sleep(seconds)


@task(name="half")
def half() -> None:
    time.sleep(0.5)


@task(name="read")
def read(sent: float) -> None:
    """Take 50 ms; leave how long it was from sending to the end, seconds."""
    time.sleep(0.05)
    note("latencies", time.time() - sent)


@task(name="overrun", **limits(SOFT, HARD))
def overrun() -> None:
    """Leave how late the soft limit came, go on, and be ended by the hard one."""
    began = time.time()
    note("began", began)
    until = began + 20
    while time.time() < until:
        try:
            while time.time() < until:
                time.sleep(0.002)  # a thread is interrupted in Python code only
        except SoftTimeLimitExceeded:
            note("soft", time.time() - began - SOFT)


@task(name="started")
def started() -> None:
    note("started", time.time())


@task(name="cross")
def cross(below: int, pause: float, over: int) -> None:
    """Take *below* bytes, then *over* more at once; leave when that began, and keep all."""
    block = bytearray(b"x") * below
    time.sleep(pause)
    note("crossed", time.time())
    more = bytearray(b"x") * over
    while not app.backend.client.exists("release"):
        time.sleep(0.02)
    del block, more


@task(name="wave")
def wave(below: int, over: int, seconds: float) -> None:
    """Take *below* bytes; take and give back *over* more, in turns of a tenth of a second."""
    block = bytearray(b"x") * below
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        more = bytearray(b"x") * over
        time.sleep(0.1)
        del more
        time.sleep(0.1)
    del block
