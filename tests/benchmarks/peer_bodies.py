"""What the calls of every peer do: the same code under Celery, Dramatiq and RQ.

Each leaves in Redis what was seen of it; ``REDIS`` in the environment says where.
"""

from __future__ import annotations

import os
import signal
import time

from redis import Redis

#: Limits of a call: seconds, and bytes of RSS.
SOFT, HARD = 1, 2
MAX_RSS = 200 * 2**20
#: How long a call goes on that nothing stops, seconds; and what it takes, bytes.
LONG, SIZE = 8.0, 800 * 2**20

redis: Redis = Redis.from_url(os.environ.get("REDIS", "redis://127.0.0.1:6379"))


def started() -> None:
    redis.rpush("started", time.time())


def short(sent: float) -> None:
    redis.rpush("waits", time.time() - sent)


def overruns() -> None:
    """Overrun in blocking calls, and take no notice of an exception that ends one."""
    redis.rpush("runs", time.time())
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        try:
            time.sleep(until - time.monotonic())
        except Exception:
            continue


def grows() -> None:
    """Take all of SIZE, well within the time limit."""
    redis.rpush("runs", time.time())
    blocks = []
    for _ in range(50):
        blocks.append(bytearray(b"x") * (SIZE // 50))
        time.sleep(0.005)
    redis.rpush("grown", len(blocks))


def dies() -> None:
    redis.rpush("runs", time.time())
    os.kill(os.getpid(), signal.SIGKILL)


BODIES = (started, short, overruns, grows, dies)
