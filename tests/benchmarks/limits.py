"""What a limit over the fleet costs, how soon a free place is taken, and whom a flood holds up.

Two workers with threads. Throughput is that of calls of 20 ms, with a limit as high as their slots
together. A place is free when a call has ended; the next one starts on either worker. In a flood
one tenant sends many calls at once, and 20 others one a second each: a limit by key lets each run
two at a time. A paced tenant sends as many a second as its limit lets through, so that none waits
aside: what it adds is what running them costs the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from tests.benchmarks.ground import Ground, Workplace
from tests.benchmarks.measure import Figure, Target, in_turn, percentile

APP = "tests.benchmarks.limits_app"
#: How long a call takes, seconds.
SECONDS = 0.02
#: Calls of a paced tenant for each quiet one, 80 a second: nearly what its limit lets through.
_PACE = 4


def run(ground: Ground) -> list[Figure]:
    return [*_throughput(ground), _gaps(ground), *_flood(ground)]


def _place(ground: Ground, **environment: str) -> Workplace:
    place = ground.workplace(**environment)
    for _ in range(2):
        place.worker("-Q", "lane", "-P", "threads", app=APP)
    return place


def _throughput(ground: Ground) -> Iterator[Figure]:
    calls, rounds = ground.amount(2_000, 40), ground.amount(5, 1)
    staged = ground.workplace()
    ways = {
        word: partial(
            _calls_per_second, staged, _place(ground, WAY=way, SLOTS="20", LIMIT="40"), calls
        )
        for word, way in (("no limit", "free"), ("limit of 40", "limited"))
    }
    for measure in ways.values():
        measure()
    yield Figure(
        "throughput of calls of 20 ms", "calls/s", in_turn(ways, rounds),
        {"limit of 40": "no limit"},
        {"limit of 40": Target(0.9, at_least=True, to="no limit")}, plotted=True,
    )  # fmt: skip


def _calls_per_second(staged: Workplace, place: Workplace, calls: int) -> float:
    place.redis.delete("began", "ended")
    for _ in range(calls):
        staged.send("work", "any", time.time(), SECONDS)
    # All at once: to send them takes as long as to run them.
    staged.redis.move("lane", place.redis.get_connection_kwargs()["db"])
    ended = place.wait_for_times("ended", calls, timeout=120)
    return calls / (max(ended) - min(place.times("began")))


def _gaps(ground: Ground) -> Figure:
    calls, rounds = ground.amount(100, 10), ground.amount(3, 1)
    place = _place(ground, WAY="limited", SLOTS="4", LIMIT="1")
    gaps = in_turn({"limit of 1": partial(_gap, place, calls)}, rounds)
    return Figure(
        "from the end of a call to the start of the next, p95", "ms", gaps,
        targets={"limit of 1": Target(100)},
    )  # fmt: skip


def _gap(place: Workplace, calls: int) -> float:
    place.redis.delete("began", "ended")
    for _ in range(calls):
        place.send("work", "any", time.time(), SECONDS)
    ended = sorted(place.wait_for_times("ended", calls, timeout=120))
    began = sorted(place.times("began"))[1:]
    gaps = [after - before for before, after in zip(ended, began, strict=False)]
    return max(0.0, percentile(gaps, 0.95)) * 1e3


def _flood(ground: Ground) -> Iterator[Figure]:
    flood, seconds = ground.amount(10_000, 60), ground.amount(30, 2)
    waits = in_turn(
        {
            "no flood": partial(_waits_of_others, ground, seconds),
            "flood": partial(_waits_of_others, ground, seconds, flood=flood),
            "paced": partial(_waits_of_others, ground, seconds, pace=_PACE),
        },
        ground.amount(3, 1),
    )
    yield Figure(
        "wait of 20 quiet tenants, p95", "ms", waits,
        {"flood": "no flood", "paced": "no flood"},
        {"flood": Target(1.2, to="no flood")},
    )  # fmt: skip


def _waits_of_others(ground: Ground, seconds: int, flood: int = 0, pace: int = 0) -> float:
    place = _place(ground, WAY="keyed", SLOTS="8", LIMIT="2")
    for _ in range(flood):
        place.send("work", "noisy", time.time(), SECONDS)
    began = time.monotonic()
    for number in range(20 * seconds):
        for beat in range(1 + pace):
            due = began + (number + beat / (1 + pace)) / 20
            time.sleep(max(0.0, due - time.monotonic()))
            tenant = "noisy" if beat else f"quiet{number % 20}"
            place.send("work", tenant, time.time(), SECONDS)
    names = [f"waits:quiet{number}" for number in range(20)]
    waits = [wait for name in names for wait in place.wait_for_times(name, seconds, timeout=120)]
    place.close()
    return percentile(waits, 0.95) * 1e3
