"""What Redis is asked for one call, how long one waits, and what is lost where workers are killed.

``plain`` is plain Celery; ``kombu`` a worker with budgets whose messages kombu takes (the setting
``budgets_redis_transport``); ``budgets`` one that takes them itself. Commands are counted by
MONITOR, those inside of scripts apart; a round trip is what Redis reads at once. The wait is from
sending one call to an idle worker until its body starts. Then pairs of
workers, two lanes with three priorities, are killed with their processes under load, and all
calls are counted that have never run when the last worker has nothing left to do.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from functools import partial
from typing import Any

from kombu import Connection

from tests.benchmarks.ground import Ground, Workplace
from tests.benchmarks.load import drained, messages, push, spend
from tests.benchmarks.measure import Figure, Target, in_turn, percentiles
from tests.support.waiting import wait_until

WAYS = {
    "plain": {"WAY": "plain"},
    "kombu": {"WAY": "budgeted", "CELERY_BUDGETS_REDIS_TRANSPORT": "kombu"},
    "budgets": {"WAY": "budgeted", "CELERY_BUDGETS_REDIS_TRANSPORT": "budgets"},
}
KILLED_APP = "tests.brokers.killed_app"
#: Calls that wait while workers are killed.
AHEAD = 1500


def run(ground: Ground) -> list[Figure]:
    asked: dict[str, dict[str, list[float]]] = {"sent": {}, "scripted": {}, "trips": {}}
    places: dict[str, Workplace] = {}
    for way, environment in WAYS.items():
        place = places[way] = ground.workplace(**environment)
        place.worker("-Q", "lane", "-c", "2")
        spend(place, ground.amount(300, 10))
        for what, count in _asked(place, ground.amount(1_000, 20)).items():
            asked[what][way] = [count]
    waits = in_turn(
        {way: partial(_waits, place, ground.amount(100, 3)) for way, place in places.items()},
        ground.amount(8, 1),
    )
    # Fewer by kombu's way: a tenth shows that this is a moment in which calls are lost.
    kills = {"kombu": ground.amount(100, 2), "budgets": ground.amount(1_000, 2)}
    lost = {way: float(_lost(ground, way, count)) for way, count in kills.items()}
    return [
        Figure("commands per call", "commands", asked["sent"]),
        Figure("commands per call, inside of scripts", "commands", asked["scripted"]),
        Figure("round trips per call", "round trips", asked["trips"], {"budgets": "plain"}),
        *percentiles("wait on an idle worker", waits, against={"budgets": "plain"}),
        *(
            Figure(
                f"calls lost by {count:,} kills", "calls", {way: [lost[way]]},
                targets={"budgets": Target(0)} if way == "budgets" else {},
            )
            for way, count in kills.items()
        ),
    ]  # fmt: skip


def _asked(place: Workplace, calls: int) -> dict[str, float]:
    """Return commands, commands inside of scripts, and round trips, for each of *calls*."""
    waiting = messages(place, "noop", "lane", calls)
    seen, ended = Counter[str](), threading.Event()
    database = place.redis.connection_pool.connection_kwargs["db"]

    def watch() -> None:
        with place.redis.monitor() as monitor:
            for command in monitor.listen():
                if ended.is_set():
                    return
                if command["db"] == database:
                    seen[command["client_type"]] += 1

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    time.sleep(0.2)
    push(place, waiting)
    reads = _reads(place)
    seen.clear()
    while not drained(place):
        time.sleep(0.2)  # each look is counted too
    trips = _reads(place) - reads
    ended.set()
    place.redis.ping()
    watcher.join()
    scripted = seen.pop("lua", 0)
    return {"sent": seen.total() / calls, "scripted": scripted / calls, "trips": trips / calls}


def _waits(place: Workplace, calls: int) -> list[float]:
    """Return how long each of *calls* has waited that found the worker idle, seconds."""
    place.redis.delete("waits")
    for number in range(calls):
        time.sleep(0.01)  # it waits at Redis again
        place.send("short", time.time())
        place.wait_for_times("waits", number + 1)
    return place.times("waits")


def _reads(place: Workplace) -> int:
    return int(place.redis.info("stats")["total_reads_processed"])


def _lost(ground: Ground, way: str, kills: int) -> int:
    """Kill pairs of workers at random moments; return how many calls have never run."""
    place, chance, sent = ground.workplace(TRANSPORT=way), random.Random(15), 0
    for _ in range(kills // 2):
        for _ in range(AHEAD - (sent - int(place.redis.scard("ran")))):
            _send(place, sent)
            sent += 1
        pair = [place._workers(KILLED_APP, "-c", "4", ready=False, env={"TRANSPORT": way})
                for _ in range(2)]  # fmt: skip
        for each in pair:
            each.wait_ready(timeout=60)
        for each in pair:
            time.sleep(chance.uniform(0.0, 0.3))
            each.kill()
        _give_back_what_the_dead_held(place)
    last = place._workers(KILLED_APP, "-c", "4", env={"TRANSPORT": way})
    wait_until(
        lambda: not any(map(place.redis.exists, _lists())) and not place.redis.exists("unacked"),
        "nothing waits", timeout=300, detail=last.tail,
    )  # fmt: skip
    last.kill()
    return sent - int(place.redis.scard("ran"))


def _lists() -> list[str]:
    return [f"{lane}{end}" for lane in ("quick", "other") for end in ("", "\x06\x163", "\x06\x169")]


def _send(place: Workplace, number: int) -> Any:
    lane, priority = ("quick", "other")[number % 2], (0, 3, 9)[number % 3]
    return place.sender.send_task(
        f"{KILLED_APP}.run", (number,), queue=lane, priority=priority, ignore_result=True
    )


def _give_back_what_the_dead_held(place: Workplace) -> None:
    """Do at once what any worker does after the visibility timeout; by kombu's own code."""
    with Connection(place.url, transport_options={"visibility_timeout": 0}) as broker:
        broker.channel().qos.restore_visible(num=10_000, interval=1)
