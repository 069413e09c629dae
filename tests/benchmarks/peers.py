"""The same lane built with budgets, Dramatiq and RQ, on the same server, with two processes.

Throughput and latency of calls that leave the time in Redis; then what holds when a call
overruns its limit and takes no notice, takes four times its memory, or its process is killed.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from tests.benchmarks import peer_bodies
from tests.benchmarks.ground import Ground
from tests.benchmarks.measure import Figure, Finding, in_turn, percentiles
from tests.benchmarks.peer_kinds import PEERS, Peer

#: Longest that anything is waited for, seconds: as long as a call goes on that nothing stops.
PATIENCE = peer_bodies.LONG + 4
TROUBLES = {
    "overruns": "a call overruns its 2 s limit and swallows exceptions",
    "grows": "a call takes 800 MiB where 200 MiB are its limit",
    "dies": "the process of a call is killed",
}


def run(ground: Ground) -> list[Figure | Finding]:
    calls, rounds = ground.amount(400, 20), ground.amount(3, 1)
    speed = in_turn({name: partial(_speed, ground, p, calls) for name, p in PEERS.items()}, rounds)
    against = {name: "celery-budgets" for name in PEERS if name != "celery-budgets"}
    waits = in_turn({name: partial(_waits, ground, peer) for name, peer in PEERS.items()}, rounds)
    # The others wait for as long as a peer stops nothing.
    troubles = [] if ground.quick else list(TROUBLES)
    return [
        Figure("short calls", "calls/s", speed, against, plotted=True),
        *percentiles("wait of a call, idle", waits, against=against),
        *(
            Finding(
                TROUBLES[trouble],
                {name: _what_holds(ground, peer, trouble) for name, peer in PEERS.items()},
            )
            for trouble in troubles
        ),
    ]  # fmt: skip


def _speed(ground: Ground, kind: type[Peer], calls: int) -> float:
    """Return calls per second, from the first to the last, of calls that wait already."""
    place = ground.workplace()
    peer = kind(place, ground.directory)
    for _ in range(calls):
        peer.send("started")
    peer.start(2)
    times = place.wait_for_times("started", calls, timeout=120)
    peer.stop()
    place.close()
    return (calls - 1) / (max(times) - min(times))


def _waits(ground: Ground, kind: type[Peer]) -> list[float]:
    """Return how long calls wait that come one at a time, seconds."""
    place = ground.workplace()
    peer = kind(place, ground.directory)
    peer.start(2)
    for _ in range(3):
        peer.send("started")
    place.wait_for_times("started", 3)
    count = ground.amount(100, 5)
    for number in range(count):
        peer.send("short", time.time())
        place.wait_for_times("waits", number + 1)
    peer.stop()
    waits = place.times("waits")
    place.close()
    return waits


def _what_holds(ground: Ground, kind: type[Peer], trouble: str) -> str:
    """Send one call that is trouble and one that is not; return what was seen, in words."""
    place = ground.workplace()
    peer = kind(place, ground.directory)
    peer.start(1)
    peer.send("started")
    place.wait_for_times("started", 1)
    handle = peer.send(trouble)
    (began,) = place.wait_for_times("runs", 1)
    peer.send("started")
    words = [
        _when(lambda: place.redis.llen("started") > 1, began, "the slot is free"),
        _when(lambda: peer.ended(handle), began, "the caller knows"),
    ]
    told = peer.ended(handle)
    if told:
        words[1] += f" ({told})"
    if place.redis.exists("grown"):
        words.append("it had all it wanted")
    runs = place.redis.llen("runs")
    if runs > 1:
        words.append(f"it ran {runs} times")
    peer.stop()
    place.close()
    return "; ".join(words)


def _when(predicate: Any, began: float, what: str) -> str:
    while time.time() - began < PATIENCE:
        if predicate():
            return f"{what} after {time.time() - began:.1f} s"
        time.sleep(0.02)
    return f"not within {PATIENCE:g} s: {what}"
