"""What a call costs with more lanes, more messages waiting, more workers.

Nothing may grow faster than linearly, and the cost of a call not at all with the queue. More
queues cost plain Celery more too (each read from the broker names all of them), so lanes are
compared with as many plain queues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from celery import Celery

from celery_budgets import Budgets
from tests.benchmarks.ground import Ground, Workplace
from tests.benchmarks.load import Spent, spend
from tests.benchmarks.measure import Figure, Target, in_turn

#: Room for chance: two equal things are measured as this far apart.
NOISE = 1.1


def run(ground: Ground) -> list[Figure]:
    return [*_lanes(ground), _waiting(ground), *_workers(ground)]


def _lanes(ground: Ground) -> list[Figure]:
    calls, rounds = ground.amount(1_000, 30), ground.amount(5, 1)
    numbers = (50,) if ground.quick else (1, 5, 50)
    ways: dict[str, Callable[[], Spent]] = {}
    against: dict[str, str] = {}
    for number in numbers:
        for way, word in (("plain", "plain queues"), ("budgeted", "lanes")):
            place = ground.workplace(WAY=way, LANES=str(number))
            place.worker("-c", "2")
            ways[f"{number} {word}"] = partial(spend, place, calls)
        against[f"{number} lanes"] = f"{number} plain queues"
    measured = in_turn(ways, rounds)
    targets = {way: Target(NOISE, to=base) for way, base in against.items()}
    return [
        Figure("CPU per call by lanes", "µs", _cpu(measured), against, targets),
        Figure(
            "CPU per call by lanes, in the worker main process", "µs",
            {way: [spent.main for spent in spents] for way, spents in measured.items()}, against,
        ),
    ]  # fmt: skip


def _waiting(ground: Ground) -> Figure:
    calls, rounds = ground.amount(1_000, 30), ground.amount(5, 1)
    place = ground.workplace(WAY="budgeted")
    place.worker("-Q", "lane", "-c", "2")
    spend(place, calls)
    lengths = (10, 1_000) if ground.quick else (10, 1_000, 100_000)
    ways = {f"{length:,} waiting": partial(spend, place, calls, left=length) for length in lengths}
    base, *others = ways
    against = dict.fromkeys(others, base)
    targets = {way: Target(NOISE, to=base) for way in others}
    return Figure(
        "CPU per call by messages waiting", "µs", _cpu(in_turn(ways, rounds)), against, targets
    )


def _workers(ground: Ground) -> list[Figure]:
    calls, rounds = ground.amount(1_000, 30), ground.amount(5, 1)
    numbers = (1, 2) if ground.quick else (1, 4, 16)
    places: dict[str, Workplace] = {}
    for number in numbers:
        place = places["1 worker" if number == 1 else f"{number} workers"] = ground.workplace()
        for _ in range(number):
            place.worker("-Q", "lane", "-c", "1")
    base, *others = places
    against = dict.fromkeys(others, base)
    spent = in_turn({way: partial(spend, place, calls) for way, place in places.items()}, rounds)
    asked = in_turn({way: _asking(place) for way, place in places.items()}, rounds)
    linear = {way: Target(float(way.split()[0]), to=base) for way in others}
    return [
        Figure("CPU per call by workers", "µs", _cpu(spent), against),
        Figure("statistics() by workers", "ms", asked, against, linear),
    ]


def _asking(place: Workplace) -> Callable[[], float]:
    """Return what asks the workers of *place*, and says in how many milliseconds they answered."""
    app = Celery("asker", broker=place.url, backend=place.url, set_as_current=False)
    budgets, expected = Budgets(app), len(place.running)

    def ask() -> float:
        started = time.perf_counter()
        statistics = budgets.statistics(timeout=10)
        seconds = time.perf_counter() - started
        assert not statistics.silent
        assert statistics.total.total, f"of {expected} workers"
        return seconds * 1000

    return ask


def _cpu(measured: Mapping[str, list[Spent]]) -> dict[str, list[float]]:
    return {way: [spent.main + spent.pool for spent in spents] for way, spents in measured.items()}
