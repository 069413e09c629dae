"""What a budget costs a call that does nothing, on prefork with two processes.

Six ways: a plain Task; one with Celery's own time limits; one with OpenTelemetry's
instrumentation; a BudgetedTask with telemetry off; one with everything on (spans, metrics,
Prometheus, JSON logs); and a plain Task with Celery's defaults, which acknowledges early and
fetches four messages ahead.
"""

from __future__ import annotations

from functools import partial

from tests.benchmarks.ground import Ground
from tests.benchmarks.load import Spent, spend
from tests.benchmarks.measure import Figure, Target, in_turn

WAYS = ("plain", "limited", "instrumented", "budgeted", "everything", "celery_defaults")
AGAINST = {"budgeted": "plain", "everything": "instrumented"}
CONCURRENCY = 2


def run(ground: Ground) -> list[Figure]:
    calls, rounds = ground.amount(1_000, 40), ground.amount(15, 1)
    places = {way: ground.workplace(WAY=way) for way in WAYS}
    for place in places.values():
        place.worker("-Q", "lane", "-c", str(CONCURRENCY))
        spend(place, ground.amount(1_000, 10))
    measured = in_turn({way: partial(spend, place, calls) for way, place in places.items()}, rounds)
    return [
        Figure(
            "no-op calls", "calls/s",
            {way: [spent.calls_per_second for spent in spents] for way, spents in measured.items()},
            AGAINST,
            {
                "budgeted": Target(0.97, at_least=True, to="plain"),
                "everything": Target(0.95, at_least=True, to="instrumented"),
            },
            plotted=True,
        ),
        *_cpu(measured, "pool", "pool process", (30, 100)),
        *_cpu(measured, "main", "worker main process", (20, 40)),
    ]  # fmt: skip


def _cpu(
    measured: dict[str, list[Spent]], part: str, where: str, most: tuple[float, float]
) -> list[Figure]:
    """Return the CPU per call in *part*, and how much of it is the budget's."""
    taken = {way: [getattr(spent, part) for spent in spents] for way, spents in measured.items()}
    beyond = {
        f"{way} - {base}": [
            mine - theirs for mine, theirs in zip(taken[way], taken[base], strict=True)
        ]
        for way, base in AGAINST.items()
    }
    targets = {name: Target(bound) for name, bound in zip(beyond, most, strict=True)}
    return [
        Figure(f"CPU per call, {where}", "µs", taken, AGAINST),
        Figure(f"CPU per call of the budget, {where}", "µs", beyond, targets=targets),
    ]
