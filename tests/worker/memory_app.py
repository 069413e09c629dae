"""Calls that take memory in every way; each leaves ``runs:ID`` in Redis, one per run."""

from __future__ import annotations

import itertools
import mmap
import os
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

from celery import Celery
from kombu import Queue

from celery_budgets import BudgetedTask, Budgets, Lane
from celery_budgets.units import MIB

#: Of each pool process, bytes: warning at 0.78, hard limit at 1.5 x.
MAX_RSS = 200 * MIB
#: What is kept from one call to the next.
kept: list[bytearray] = []


def optional(name, convert=str):
    return convert(os.environ[name]) if name in os.environ else None


app = Celery("memory")
app.conf.update(
    budgets_max_rss=MAX_RSS,
    budgets_max_worker_rss=optional("MAX_WORKER_RSS"),
    budgets_rejection=os.environ.get("REJECTION", "requeue"),
    budgets_max_pause=float(os.environ.get("MAX_PAUSE", "60")),
    budgets_memory_guard="NO_GUARD" not in os.environ,
    worker_soft_shutdown_timeout=float(os.environ.get("SOFT_SHUTDOWN", "0")),
    worker_pool_start_method=os.environ.get("START_METHOD", "fork"),
    worker_proc_alive_timeout=30,  # three that are spawned at once import for long
    broker_connection_retry_on_startup=True,
    redis_socket_connect_timeout=2,
    result_extended=True,
)
if "QUORUM" in os.environ:
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 20}
    app.conf.task_queues = (
        Queue("quorum", durable=True, routing_key="quorum", queue_arguments=arguments),
    )
budgets = Budgets(
    app,
    lanes=[
        Lane("lane", concurrency=8, timeout=60),
        Lane("early", concurrency=8, timeout=60, idempotent=False),
        Lane("raising", concurrency=2, timeout=60, memory="raise"),
        # Not run again: the neighbours in it end with their worker.
        Lane("roomy", concurrency=4, timeout=60, max_rss=4 * MAX_RSS, idempotent=False),
        Lane("quorum", concurrency=4, timeout=60),
    ],
)


def redis():
    return app.backend.client


def started(task):
    """Count a run."""
    redis().incr(f"runs:{task.request.id}")
    redis().set(f"pid:{task.request.id}", os.getpid())


def allocate(size):
    """Return *size* bytes that are really there."""
    block = bytearray(size)
    for page in range(0, size, mmap.PAGESIZE):
        block[page] = 1
    return block


def grow(size, seconds=0.0):
    """Take *size* bytes in blocks of 4 MiB, over *seconds*."""
    blocks = []
    steps = max(1, size // (4 * MIB))
    for _ in range(steps):
        blocks.append(allocate(4 * MIB))
        if seconds:
            time.sleep(seconds / steps)
    return blocks


@contextmanager
def holding(key):
    """Say in Redis that this call has its memory, until it is told to let go."""
    redis().set(f"has:{key}", 1)
    while not redis().exists(f"release:{key}"):
        time.sleep(0.02)
    yield


class Counting(BudgetedTask):
    abstract = True

    def before_start(self, task_id, args, kwargs):
        started(self)


@app.task(base=Counting, bind=True, lane="lane")
def quick(self, value=None):
    return value


@app.task(base=Counting, bind=True, lane="early")
def quick_early(self, value=None):
    return value


@app.task(base=Counting, bind=True, lane="lane")
def short(self, seconds=0.001):
    time.sleep(seconds)
    return os.getpid()


@app.task(base=Counting, bind=True, lane="early")
def short_early(self, seconds):
    time.sleep(seconds)
    return os.getpid()


@app.task(base=Counting, bind=True, lane="lane")
def take(self, size, seconds=0.0, stay=0.0):
    """Grow by *size* bytes, and go on for *stay* seconds."""
    blocks = grow(size, seconds)
    time.sleep(stay)
    return len(blocks)


@app.task(base=Counting, bind=True, lane="raising")
def take_raising(self, size, stay=0.0):
    blocks = grow(size, 0.3)
    time.sleep(stay)
    return len(blocks)


@app.task(base=Counting, bind=True, lane="lane")
def keep(self, size):
    """Keep *size* bytes in the process after the call."""
    kept.append(allocate(size))
    return os.getpid()


@app.task(base=Counting, bind=True, lane="lane")
def fill(self, size):
    """Keep *size* bytes in the process after the call, in place of what it kept before."""
    kept.clear()
    kept.append(allocate(size))
    time.sleep(0.2)


@app.task(base=Counting, bind=True, lane="lane")
def spike(self, size):
    """Take *size* bytes and give them back at once."""
    allocate(size)
    return os.getpid()


@app.task(base=Counting, bind=True, lane="lane")
def pid(self):
    return os.getpid()


@app.task(base=Counting, bind=True, lane="roomy")
def hold(self, size, key):
    """Hold *size* bytes until ``release:KEY`` is set in Redis."""
    block = allocate(size)
    with holding(key):
        return len(block)


@app.task(base=Counting, bind=True, lane="roomy")
def flap(self, size, seconds):
    """Hold *size* bytes and give them back, in turns of a second."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        block = allocate(size)
        time.sleep(1)
        del block
        time.sleep(1)


@app.task(base=Counting, bind=True, lane="lane")
def in_c_with_the_lock(self, size, rounds):
    """Take *size* bytes and then go round and round, in one call that keeps the lock."""
    pointers = itertools.repeat(None, size // 8)
    return len(list(itertools.chain(pointers, filter(None, itertools.repeat(None, rounds)))))


@app.task(base=Counting, bind=True, lane="lane")
def gigabyte_per_second(self):
    """Grow by 1 GB/s in Python code, until something stops it."""
    blocks, began, size = [], time.monotonic(), 0
    while size < 3000 * MIB:
        blocks.append(allocate(2 * MIB))
        size += 2 * MIB
        redis().set(f"size:{self.request.id}", size)
        while time.monotonic() - began < size / 1e9:
            pass
    return size


@app.task(base=Counting, bind=True, lane="lane")
def out_of_memory(self):
    raise MemoryError("honestly")


@app.task(base=Counting, bind=True, lane="lane")
def under_rlimit(self):
    """Meet RLIMIT_AS, as a program that sets it would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (now + 50 * MIB, hard))
    try:
        return len(allocate(150 * MIB))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@app.task(base=Counting, bind=True, lane="lane")
def killed(self):
    """End as the kernel's OOM killer ends a process."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(base=Counting, bind=True, lane="lane", max_kills=2)
def killed_often(self, how, value=None):
    if how == "memory":
        return len(grow(3 * MAX_RSS, 0.3))
    os.kill(os.getpid(), signal.SIGKILL)
    return None


@app.task(base=Counting, bind=True, lane="quorum")
def short_quorum(self, seconds):
    time.sleep(seconds)
    return os.getpid()
