"""How long one call waits for an idle worker: from sending it until its body starts.

The same calls go to a worker of plain Celery and to one with budgets, in turn, on Redis and, where
there is one that we administer, on RabbitMQ.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tests.benchmarks.ground import Ground, Workplace
from tests.benchmarks.measure import Figure, Target, in_turn, percentiles
from tests.support.rabbitmq import RABBITMQ, rabbitmqctl

WAYS = {"plain": "plain", "budgets": "budgeted"}
#: What two runs of one way may differ by.
NOISE = 1.1


def run(ground: Ground) -> list[Figure]:
    figures = _figures(ground, "Redis", dict.fromkeys(WAYS))
    with _virtual_hosts() as hosts:
        if hosts:
            figures += _figures(ground, "RabbitMQ", hosts)
    return figures


def _figures(ground: Ground, broker: str, addresses: dict[str, str | None]) -> list[Figure]:
    places = {}
    for way, app in WAYS.items():
        place = places[way] = ground.workplace(addresses[way], WAY=app)
        place.worker("-Q", "lane", "-c", "2")
        _waits(place, 20)
    calls, rounds = ground.amount(500, 3), ground.amount(7, 1)
    waits = in_turn({way: partial(_waits, place, calls) for way, place in places.items()}, rounds)
    return percentiles(
        f"wait on an idle worker, {broker}", waits, against={"budgets": "plain"},
        targets={"budgets": Target(NOISE, to="plain")},
    )  # fmt: skip


def _waits(place: Workplace, calls: int) -> list[float]:
    """Return how long each of *calls* has waited, seconds."""
    place.redis.delete("waits")
    for number in range(calls):
        time.sleep(0.01)  # the worker waits at the broker again
        place.send("short", time.time())
        place.wait_for_times("waits", number + 1)
    return place.times("waits")


@contextmanager
def _virtual_hosts() -> Iterator[dict[str, str | None]]:
    """Yield the address of a virtual host of RabbitMQ by way; nothing where none can be made."""
    names = {way: f"celery-budgets-latency-{os.getpid()}-{way}" for way in WAYS}
    address = f"amqp://guest:guest@{RABBITMQ[0]}:{RABBITMQ[1]}"
    try:
        made = all(
            rabbitmqctl("add_vhost", name)
            and rabbitmqctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
            for name in names.values()
        )
        yield {way: f"{address}/{name}" for way, name in names.items()} if made else {}
    finally:
        for name in names.values():
            rabbitmqctl("delete_vhost", name)
