"""What a full lane with 10,000 calls waiting costs the calls of another lane in the same worker.

One worker takes from both queues: lanes of 16 slots and of one, and plain Celery with as many
processes. Twenty calls of 50 ms come each second to the one queue; the other, of calls of half a
second, is empty or full. Latency is from sending to the end of the body.
"""

from __future__ import annotations

import time
from functools import partial

from tests.benchmarks.ground import Ground, Workplace
from tests.benchmarks.load import drained, messages, push
from tests.benchmarks.measure import Figure, Target, in_turn, percentile

RATE = 20
SLOTS = 16


def run(ground: Ground) -> list[Figure]:
    count, rounds, waiting = ground.amount(120, 5), ground.amount(6, 1), ground.amount(10_000, 50)
    ways = {}
    for way in ("lanes", "plain"):
        place = ground.workplace(WAY="budgeted" if way == "lanes" else "plain", SLOW_SLOTS="1")
        place.worker("-Q", "lane,slow", "-c", str(SLOTS + 1))
        ways[f"{way}, other empty"] = partial(_latencies, place, count, 0)
        ways[f"{way}, other full"] = partial(_latencies, place, count, waiting)
    measured = in_turn(ways, rounds)
    return [
        Figure(
            f"latency beside a full lane, p{share * 100:g}", "ms",
            {
                way: [percentile(one, share) * 1000 for one in latencies]
                for way, latencies in measured.items()
            },
            against={f"{way}, other full": f"{way}, other empty" for way in ("lanes", "plain")},
            targets={"lanes, other full": Target(1.2, to="lanes, other empty")}
            if share == 0.95 else {},
            plotted=share == 0.95,
        )
        for share in (0.5, 0.95)
    ]  # fmt: skip


def _latencies(place: Workplace, count: int, waiting: int) -> list[float]:
    """Return how long each call took, seconds, beside *waiting* calls of the other queue."""
    place.redis.delete("latencies")
    push(place, messages(place, "half", "slow", waiting), "slow")
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / RATE - time.monotonic()))
        place.send("read", time.time())
    latencies = place.wait_for_times("latencies", count, timeout=300)
    place.redis.delete("slow")
    while not drained(place):
        time.sleep(0.02)
    return latencies
