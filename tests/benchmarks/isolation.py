"""How long short calls wait while slow ones flood, with eight slots in each layout.

Lanes: a worker each, four slots each, as ``celery lanes up`` starts them; or one worker of both.
One plain queue: one worker of eight. Two plain queues: one worker of eight that takes from both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from tests.benchmarks.ground import Ground, Workplace
from tests.benchmarks.measure import Figure, in_turn, percentiles

LAYOUTS = ("lanes", "lanes, one worker", "two queues, one worker", "one queue")
SLOTS = 8
#: How long a slow call takes, seconds; and short calls sent per second.
SLOW, RATE = 0.4, 20


def run(ground: Ground) -> list[Figure]:
    seconds, rounds, slots = ground.amount(5, 1), ground.amount(4, 1), ground.amount(SLOTS, 2)
    layouts: dict[str, Callable[[], list[float]]] = {}
    for layout in LAYOUTS:
        way = "budgeted" if layout.startswith("lanes") else "plain"
        place = ground.workplace(WAY=way, SLOTS=str(slots // 2))
        if layout == "lanes, one worker":
            place.worker("-Q", "lane,slow")
        elif layout == "lanes":
            place.worker("-Q", "lane", "-c", str(slots // 2))
            place.worker("-Q", "slow", "-c", str(slots // 2))
        elif layout == "one queue":
            place.worker("-Q", "lane", "-c", str(slots))
        else:
            place.worker("-Q", "lane,slow", "-c", str(slots))
        slow_queue = "lane" if layout == "one queue" else "slow"
        layouts[layout] = partial(_waits, place, slow_queue, seconds, slots)
    waits = in_turn(layouts, rounds)
    against = dict.fromkeys(LAYOUTS[1:], "lanes")
    return percentiles("wait of short calls", waits, against=against, plotted=True)


def _waits(place: Workplace, slow_queue: str, seconds: int, slots: int) -> list[float]:
    """Return how long each short call waited, seconds, while more slow ones come than go."""
    place.redis.delete("waits")
    for _ in range(2 * slots):
        place.send("slow", SLOW, queue=slow_queue)
    began, sent = time.monotonic(), 0.0
    for number in range(seconds * RATE):
        time.sleep(max(0.0, began + number / RATE - time.monotonic()))
        place.send("short", time.time())
        # Half as many again as all slots together can run.
        sent += 1.5 * slots / SLOW / RATE
        while sent >= 1:
            place.send("slow", SLOW, queue=slow_queue)
            sent -= 1
    waits = place.wait_for_times("waits", seconds * RATE, timeout=120)
    place.redis.delete(slow_queue)
    return waits
