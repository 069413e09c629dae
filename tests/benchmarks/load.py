"""A load of equal calls on one workplace: how fast they go through, and what CPU they take.

All messages are in the queue before the worker sees the first, made from one that Celery has
published: a sender that competes for the machine would be measured too.
"""

from __future__ import annotations

import time
import uuid
from typing import NamedTuple

from tests.benchmarks.ground import Workplace, cpu_seconds

_CHUNK = 5_000
#: Longest that a load may take, seconds.
_LONGEST = 600.0


class Spent(NamedTuple):
    """What one load has taken."""

    calls_per_second: float
    #: Microseconds of CPU per call, over all processes of the pools, and in the main ones.
    pool: float
    main: float


def messages(place: Workplace, task: str, queue: str, count: int) -> list[str]:
    """Return *count* messages as Celery publishes them, each with an id and tag of its own."""
    staging = f"staging-{uuid.uuid4().hex}"
    task_id = place.send(task, queue=staging)
    original = place.redis.lpop(staging).replace(staging, queue)
    tag = original.partition('"delivery_tag": "')[2].partition('"')[0]
    assert tag
    return [
        original.replace(task_id, str(uuid.uuid4())).replace(tag, str(uuid.uuid4()))
        for _ in range(count)
    ]


def push(place: Workplace, waiting: list[str], queue: str = "lane") -> None:
    """Put the messages into *queue*, a chunk at a time."""
    for start in range(0, len(waiting), _CHUNK):
        place.redis.lpush(queue, *waiting[start : start + _CHUNK])


def drained(place: Workplace, queue: str = "lane", left: int = 0) -> bool:
    """Say whether all messages are acknowledged, but for *left* that may still wait."""
    pipeline = place.redis.pipeline()
    pipeline.llen(queue)
    pipeline.hlen("unacked")
    waiting, unacked = pipeline.execute()
    return bool(waiting + unacked <= left)


def spend(
    place: Workplace, count: int, *, queue: str = "lane", left: int = 0, task: str = "noop"
) -> Spent:
    """Have the workers of *place* run *count* calls; return what they took.

    Args:
        place: Where they run.
        count: Calls.
        queue: The queue that they wait in.
        left: Further messages, which are there from the beginning and stay.
        task: Name of the task.
    """
    waiting = messages(place, task, queue, count + left)
    main = [worker.pid for worker in place.running]
    pool = [pid for worker in place.running for pid in worker.pool_pids()]
    before = sum(map(cpu_seconds, main)), sum(map(cpu_seconds, pool))
    started = time.perf_counter()
    push(place, waiting, queue)
    while not drained(place, queue, left):
        time.sleep(0.003)
        assert time.perf_counter() - started < _LONGEST, place.running[0].tail()
    seconds = time.perf_counter() - started
    after = sum(map(cpu_seconds, main)), sum(map(cpu_seconds, pool))
    if left:
        place.redis.delete(queue)
    per_call = 1e6 / count
    return Spent(
        count / seconds, (after[1] - before[1]) * per_call, (after[0] - before[0]) * per_call
    )
