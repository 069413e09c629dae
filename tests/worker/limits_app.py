"""Calls that overrun their limits in every way, and write down what they saw of it.

Each leaves ``marks:ID`` in Redis: what happened in its body, with the seconds since its start.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager, suppress

from celery import Celery, signals
from celery.exceptions import SoftTimeLimitExceeded

from celery_budgets import BudgetedTask, Budgets, Lane

SOFT, HARD = 1.0, 1.5
#: How long a body goes on that nothing stops, seconds.
LONG = 4.0

app = Celery("limits")
app.conf.update(
    budgets_max_abandoned_threads=int(os.environ.get("MAX_ABANDONED", "100")),
    broker_transport_options={"visibility_timeout": 60} if "VISIBILITY" in os.environ else {},
    worker_soft_shutdown_timeout=float(os.environ.get("SOFT_SHUTDOWN", "0")),
    worker_pool_start_method=os.environ.get("START_METHOD", "fork"),
    worker_proc_alive_timeout=30,  # three that are spawned at once import for long
    # A broker that is away is met again soon, and a result that cannot be stored soon is not.
    broker_connection_retry_on_startup=True,
    redis_socket_connect_timeout=2,
)
budgets = Budgets(
    app,
    lanes=[
        Lane("lane", concurrency=8, timeout=SOFT),
        Lane("other", 1),
        Lane("early", 1, timeout=0.4, idempotent=False),
    ],
)


def redis():
    return app.backend.client


def mark(task, text):
    redis().rpush(f"marks:{task.request.id}", text)


@contextmanager
def marking(task):
    """Write down how the body ends, and when."""
    started = time.monotonic()
    ended = "returned"
    try:
        yield
    except BaseException as exc:
        ended = type(exc).__name__
        raise
    finally:
        mark(task, f"{ended} {time.monotonic() - started:.3f}")


def burn(seconds):
    """Spend time in Python code."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(100))


def in_c(seconds):
    """Spend time in one call into C code that lets go of the interpreter lock."""
    per_round = min(_seconds_per_round() for _ in range(8))
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(seconds / per_round))


def _seconds_per_round(rounds=20_000):
    """Measure a round; the fastest of several is not slowed down by whatever else runs."""
    began = time.perf_counter()
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
    return (time.perf_counter() - began) / rounds


@app.task(base=BudgetedTask, bind=True, lane="lane")
def sleeping(self):
    with marking(self):
        time.sleep(LONG)


@app.task(base=BudgetedTask, bind=True, lane="lane")
def busy(self):
    with marking(self):
        burn(LONG)


@app.task(base=BudgetedTask, bind=True, lane="lane")
def swallowing(self):
    with marking(self):
        try:
            burn(LONG)
        except SoftTimeLimitExceeded:
            mark(self, "swallowed")
        burn(LONG)


@app.task(base=BudgetedTask, bind=True, lane="lane")
def in_c_code(self):
    with marking(self):
        in_c(LONG)


@app.task(base=BudgetedTask, bind=True, lane="lane")
def quick(self, value=None):
    return value


@app.task(base=BudgetedTask, bind=True, lane="lane")
def swallow_and_succeed(self):
    try:
        time.sleep(LONG)
    except SoftTimeLimitExceeded:
        return "saved"


@app.task(base=BudgetedTask, bind=True, lane="lane", soft="warn")
def warned(self, seconds):
    with marking(self):
        time.sleep(seconds)
    return "in time"


@app.task(base=BudgetedTask, bind=True, lane="lane", timeout=2.0)
def patient(self):
    """Soft 2 s, hard 3 s, for a broker that is away in the meantime."""
    with marking(self):
        time.sleep(20)


@app.task(base=BudgetedTask, bind=True, lane="lane", timeout=2.0)
def stubborn(self):
    with marking(self):
        while True:
            try:
                time.sleep(20)
            except SoftTimeLimitExceeded:
                mark(self, "swallowed")


@app.task(base=BudgetedTask, bind=True, lane="lane", max_timeout=3.0)
def extending(self, seconds, work):
    granted = self.budget.extend(seconds)
    with marking(self):
        time.sleep(work)
    return granted, self.budget.remaining()


@app.task(base=BudgetedTask, bind=True, lane="lane")
def telling(self):
    """Say how much time there was at the start."""
    return self.budget.remaining()


@app.task(base=BudgetedTask, bind=True, lane="lane")
def checking(self):
    with marking(self):
        while True:
            self.budget.check()


@app.task(base=BudgetedTask, bind=True, lane="lane", max_kills=2)
def killed_often(self):
    runs = redis().incr(f"runs:{self.request.id}")
    while True:
        try:
            time.sleep(20)
        except SoftTimeLimitExceeded:
            if runs > 3:
                return "never"


class Hooked(BudgetedTask):
    abstract = True

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        redis().rpush(f"hooks:{task_id}", f"on_failure {type(exc).__name__}")

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        redis().rpush(f"hooks:{task_id}", f"after_return {status}")


@app.task(base=Hooked, bind=True, lane="lane")
def hooked(self):
    while True:
        with suppress(SoftTimeLimitExceeded):
            time.sleep(20)


@app.task(base=BudgetedTask, lane="other")
def errback(request, exc, traceback):
    redis().rpush(f"hooks:{request.id}", "errback")


@signals.task_failure.connect
def note_failure(sender=None, task_id=None, exception=None, **_):
    if sender.name.endswith("hooked"):
        redis().rpush(f"hooks:{task_id}", f"task_failure {type(exception).__name__}")


# A hard limit far off: on a busy machine 150 ms may pass before a result is told.
@app.task(base=BudgetedTask, bind=True, lane="lane", timeout=0.3, hard_timeout=10)
def around_the_limit(self, seconds):
    """Ends close to its soft limit."""
    time.sleep(seconds)
    return "done"


@app.task(base=BudgetedTask, bind=True, lane="early")
def one_at_a_time(self, seconds):
    """Write down how many run at once; acknowledged early, so prefetch bounds nothing."""
    running = redis().incr("running")
    redis().rpush("together", running)
    try:
        time.sleep(seconds)
    finally:
        redis().decr("running")


@app.task(base=BudgetedTask)
def inner(seconds):
    """Called as a function inside another call."""
    for _ in range(int(seconds * 100)):
        time.sleep(0.01)


@app.task(base=BudgetedTask, bind=True, lane="lane", soft="warn")
def nesting_warned(self, seconds):
    inner(seconds)
    return "in time"


@app.task(base=BudgetedTask, bind=True, lane="lane")
def nesting(self, seconds):
    """Count the exceptions of the soft limit that come out of the inner task."""
    raised = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            inner(until - time.monotonic())
        except SoftTimeLimitExceeded:
            raised += 1
    return raised
