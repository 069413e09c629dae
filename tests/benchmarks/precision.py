"""How late limits come, and how soon a slot is back after a kill.

The call swallows its soft limit and goes on, so that the hard one has to end it. Loaded means
that the other slots of the same worker run calls that do nothing, as fast as they can. On
threads plain Celery enforces no limit, so there is nothing to compare with.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from tests.benchmarks.calls_app import HARD
from tests.benchmarks.ground import Ground, Workplace
from tests.benchmarks.load import messages, push
from tests.benchmarks.measure import Figure, Target, in_turn, percentile, percentiles

WAYS = {
    "prefork": ("budgeted", "prefork"),
    "prefork, plain Celery": ("plain", "prefork"),
    "threads": ("budgeted", "threads"),
}
AGAINST = {"prefork": "prefork, plain Celery"}
#: A call that has no result by then never gets one, seconds: its body ends after twenty.
UNTOLD = 25.0


def run(ground: Ground) -> list[Figure]:
    places = {name: ground.workplace(WAY=way) for name, (way, _) in WAYS.items()}
    for name, place in places.items():
        place.worker("-Q", "lane,slow", "-c", "4", "-P", WAYS[name][1])
    figures: list[Figure] = []
    pairs, rounds = ground.amount(5, 1), ground.amount(4, 1)
    for load in ("idle",) if ground.quick else ("idle", "loaded"):
        lateness = in_turn(
            {
                name: partial(_lateness, place, pairs, loaded=load == "loaded")
                for name, place in places.items()
            },
            rounds,
        )
        for part, limit in enumerate(("soft", "hard")):
            late = {name: [both[part] for both in all_] for name, all_ in lateness.items()}
            figures += percentiles(f"lateness of the {limit} limit, {load}", late, against=AGAINST)
        figures.append(
            Figure(
                f"calls whose caller is never told, {load}, of {2 * pairs}", "calls",
                {name: [both[2] for both in all_] for name, all_ in lateness.items()},
                targets=dict.fromkeys(places, Target(0)),
            )
        )  # fmt: skip
    for place in places.values():
        place.close()
    return [*figures, *_slot_back(ground)]


def _lateness(
    place: Workplace, pairs: int, *, loaded: bool
) -> tuple[list[float], list[float], int]:
    """Send calls two at a time.

    Returns:
        How late the soft and the hard limit came, seconds; and the calls that have no result.
    """
    place.redis.delete("began", "soft")
    if loaded:
        push(place, messages(place, "noop", "slow", 20_000), "slow")
    hard: list[float] = []
    untold = 0
    for pair in range(pairs):
        calls = [place.send("overrun") for _ in range(2)]
        ended = sorted(filter(None, [_ended_at(place, call) for call in calls]))
        began = sorted(place.wait_for_times("began", 2 * pair + 2)[-2:])
        if len(ended) == len(began):
            hard += [end - start - HARD for end, start in zip(ended, began, strict=True)]
        untold += len(calls) - len(ended)
    place.redis.delete("slow")
    return place.times("soft"), hard, untold


def _ended_at(place: Workplace, task_id: str) -> float | None:
    """Wait for the end of a call; return when its failure was stored, epoch seconds."""
    until = time.monotonic() + UNTOLD
    while (failure := place.failure(task_id)) is None:
        if time.monotonic() > until:
            return None
        time.sleep(0.02)
    done = failure["date_done"]
    if not isinstance(done, datetime):
        done = datetime.fromisoformat(done)
    return (done if done.tzinfo else done.replace(tzinfo=UTC)).timestamp()


def _slot_back(ground: Ground) -> list[Figure]:
    """Return how long after a hard limit the next call starts in the only slot, and at worst."""
    ways = {"budgets": "budgeted", "plain Celery": "plain"}
    places = {name: ground.workplace(WAY=way) for name, way in ways.items()}
    for place in places.values():
        place.worker("-Q", "lane", "-c", "1")
    samples: dict[str, Sequence[float]] = in_turn(
        {name: partial(_seconds_back, place) for name, place in places.items()},
        ground.amount(7, 1),
    )
    worst = {name: [percentile(seconds, 0.95)] for name, seconds in samples.items()}
    return [
        Figure(
            "the next call starts after a kill", "s", samples, {"budgets": "plain Celery"},
            {"budgets": Target(1.0, to="plain Celery")}, plotted=True,
        ),
        Figure(
            "the next call starts after a kill, p95", "s", worst, {}, {"budgets": Target(0.5)}
        ),
    ]  # fmt: skip


def _seconds_back(place: Workplace) -> float:
    place.redis.delete("began", "started")
    place.send("overrun")
    (began,) = place.wait_for_times("began", 1)
    place.send("started")
    (started,) = place.wait_for_times("started", 1)
    time.sleep(0.2)
    return started - began - HARD
