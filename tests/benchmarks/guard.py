"""The memory guard: from crossing ``max_worker_rss`` to the pause, and while it is paused.

Short calls come all the time; one call takes some memory, later at once more than is left, and
keeps it. Time counts from the moment at which it begins to take that, a tenth of a second before
it has it: so the numbers are upper bounds. The gate looks once a second (``gate.TICK``), but it
reads the exact size of many processes less often; a call that starts before it has seen the
crossing is not held back. What counts is that none starts after the pause.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from celery_budgets.units import MIB
from tests.benchmarks.ground import Ground, Workplace, cpu_seconds
from tests.benchmarks.measure import Figure, Target
from tests.support.waiting import wait_until

#: Limit of the worker, what the call takes first and then, bytes: 100 to 250 MiB are the worker's.
LIMIT, BELOW, OVER = 500 * MIB, 200 * MIB, 300 * MIB
#: Longest wait for the pause, and how long it lasts then, seconds.
LONGEST, PAUSED = 20.0, 2.0
#: Short calls sent per second.
RATE = 50
#: What waves keep and what they take and give back, bytes: above 391 MiB the gate stays closed.
TROUGH, CREST = 350 * MIB, 150 * MIB
#: How long they last, seconds.
WAVES = 6.0


def run(ground: Ground) -> list[Figure]:
    place = ground.workplace(WAY="budgeted", MAX_WORKER_RSS=str(LIMIT))
    place.worker("-Q", "lane,slow", "-c", "4")
    count = ground.amount(10, 1)
    # Before the crossing at every part of the second between two looks.
    rounds = [_cross(place, 0.5 + number / count) for number in range(count)]
    changes = _flap(place, ground.amount(int(WAVES), 2))
    return [
        Figure("crossing to pause", "s", {"gate": [one["pause"] for one in rounds]}),
        Figure(
            "calls started after the pause", "calls", {"gate": [one["after"] for one in rounds]},
            targets={"gate": Target(0)},
        ),
        Figure("calls between crossing and pause", "calls", {"gate": [r["till"] for r in rounds]}),
        Figure("freed to resumed", "s", {"gate": [one["resume"] for one in rounds]}),
        Figure("CPU of the worker while paused", "%", {"gate": [one["cpu"] for one in rounds]}),
        Figure(
            f"changes of the gate in {WAVES:g} s of waves over the limit, five a second",
            "changes", {"gate": [changes]}, targets={"gate": Target(2)},
        ),
    ]  # fmt: skip


def _cross(place: Workplace, pause: float) -> dict[str, float]:
    """Cross the limit once, *pause* seconds after coming near it; return what was seen."""
    worker = place.running[0]
    place.redis.delete("crossed", "started", "release")
    wait_until(lambda: _gate(place)["state"] == "open", "the gate is open", timeout=20)
    closings = worker.log.count("gate_closed")
    place.send("cross", BELOW, pause, OVER, queue="slow")
    _send_until(place, lambda: worker.log.count("gate_closed") > closings, LONGEST)
    before, began = cpu_seconds(worker.pid), time.monotonic()
    _send_until(place, lambda: False, PAUSED)
    cpu = (cpu_seconds(worker.pid) - before) / (time.monotonic() - began)
    gate = _gate(place)
    assert gate["state"] == "paused", worker.tail()
    (crossed,), paused, freed = place.times("crossed"), gate["since"], time.time()
    place.redis.set("release", 1)
    resumed = wait_until(
        lambda: (now := _gate(place))["state"] == "open" and now["since"], "it opens", timeout=20
    )
    starts = place.times("started")
    return {
        "pause": paused - crossed,
        "till": sum(crossed < start <= paused for start in starts),
        "after": sum(paused < start < freed for start in starts),
        "resume": resumed - freed,
        "cpu": cpu * 100,
    }


def _send_until(place: Workplace, done: Callable[[], bool], seconds: float) -> None:
    """Send short calls until *done*, for at most *seconds*."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not done():
        place.send("started")
        time.sleep(1 / RATE)


def _gate(place: Workplace) -> dict[str, Any]:
    """Return what the worker says of its gate."""
    replies = place.sender.control.broadcast("budgets", reply=True, timeout=5, limit=1)
    (answer,) = replies[0].values()
    gate: dict[str, Any] = answer["gate"]
    return gate


def _flap(place: Workplace, seconds: int) -> int:
    """Return how often the gate changed while memory waved over its limit, not below the other."""
    worker = place.running[0]
    before = len(re.findall(r"gate_(?:opened|closed)", worker.log))
    place.send("wave", TROUGH, CREST, float(seconds), queue="slow")
    time.sleep(seconds + 2)
    return len(re.findall(r"gate_(?:opened|closed)", worker.log)) - before
