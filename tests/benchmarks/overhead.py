"""What a budget costs a call that does nothing, on prefork with two processes.

Seven ways: a plain Task; one with Celery's own time limits; one with OpenTelemetry's
instrumentation; a BudgetedTask with telemetry off; one with everything on (spans, metrics,
Prometheus, JSON logs); a plain Task with Celery's defaults, which acknowledges early and fetches
four messages ahead; and a plain Task in a worker with budgets, telemetry off (``beside``). That
worker saves some of what kombu does for each message on Redis: a BudgetedTask less ``beside`` is
what the budget takes, a BudgetedTask less a plain Task what a user pays in all.

Three workers of each way, in turn: those of the same code differ by 10 us, too.
"""

from __future__ import annotations

from functools import partial

from tests.benchmarks.ground import Ground
from tests.benchmarks.load import Spent, spend
from tests.benchmarks.measure import Figure, Target, in_turn

WAYS = (
    "plain", "limited", "instrumented", "budgeted", "everything", "celery_defaults", "beside",
)  # fmt: skip
AGAINST = {"budgeted": "plain", "everything": "instrumented"}
CONCURRENCY = 2
WORKERS = 3


def run(ground: Ground) -> list[Figure]:
    measured = _measured(ground)
    return [
        Figure(
            "no-op calls", "calls/s",
            {way: [spent.calls_per_second for spent in spents] for way, spents in measured.items()},
            AGAINST,
            {
                "budgeted": Target(1.5, at_least=True, to="plain"),
                "everything": Target(1.3, at_least=True, to="instrumented"),
            },
            plotted=True,
        ),
        *_cpu(measured, "pool", "pool process", (30, 100)),
        *_cpu(
            measured, "main", "worker main process", (20, 40),
            {"budgeted": Target(0.6, to="plain")},
        ),
    ]  # fmt: skip


def _measured(ground: Ground) -> dict[str, list[Spent]]:
    calls, rounds = ground.amount(1_000, 40), ground.amount(8, 1)
    workers = range(ground.amount(WORKERS, 1))
    places = {(way, number): ground.workplace(WAY=way) for number in workers for way in WAYS}
    for place in places.values():
        place.worker("-Q", "lane", "-c", str(CONCURRENCY))
        spend(place, ground.amount(1_000, 10))
    loads = {which: partial(spend, place, calls) for which, place in places.items()}
    measured = in_turn(loads, rounds)
    return {way: [one for number in workers for one in measured[way, number]] for way in WAYS}


def _cpu(
    measured: dict[str, list[Spent]],
    part: str,
    where: str,
    most: tuple[float, float],
    ratios: dict[str, Target] | None = None,
) -> list[Figure]:
    """Return the CPU per call in *part*, and how much of it is the budget's."""
    taken = {way: [getattr(spent, part) for spent in spents] for way, spents in measured.items()}
    beyond = {
        f"{way} - {base}": [
            mine - theirs for mine, theirs in zip(taken[way], taken[base], strict=True)
        ]
        for way, base in (*AGAINST.items(), ("budgeted", "beside"))
    }
    targets = {
        f"{way} - {base}": Target(bound)
        for (way, base), bound in zip(AGAINST.items(), most, strict=True)
    }
    return [
        Figure(f"CPU per call, {where}", "µs", taken, AGAINST, ratios or {}),
        Figure(f"CPU per call of the budget, {where}", "µs", beyond, targets=targets),
    ]
