"""Whether limits over the fleet hold, on four workers to which everything happens.

10,000 calls with a limit, a limit by key, a rate, and all three. Workers are killed and stand
still, alone or with their processes, for less than a lease; processes of pools are killed; the
clocks of two workers are 5 s ahead; the Redis that keeps the limits is killed and comes back, at
once and after more than a lease. Then all workers are replaced under load. By what the bodies
write down, in the order in which Redis hears of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis

from tests.benchmarks.ground import Ground
from tests.benchmarks.measure import Figure, Target
from tests.brokers.limited_app import BURST, MOST, MOST_OF_TENANT, RATE
from tests.brokers.rough_fleet import LEASE, Report, RoughFleet
from tests.support.rabbitmq import RABBITMQ, rabbitmqctl
from tests.support.servers import Server

_HOST = "celery-budgets-benchmark-limits"


def run(ground: Ground) -> list[Figure]:
    calls = ground.amount(10_000, 200)
    many = ground.amount(1, 0)
    rough: dict[str, Report] = {}
    rolled: dict[str, Report] = {}
    lost, left = {}, {}
    for name in ("redis",) if ground.quick else _brokers():
        with _fleet(ground, name) as fleet:
            fleet.send(calls)
            happenings = [
                *[fleet.kill_worker] * (1 + 9 * many), *[fleet.kill_process] * (1 + 29 * many),
                *[fleet.stop_worker] * 8 * many, *[fleet.stop_group] * 4 * many,
                *[fleet.restart_limits] * (1 + 2 * many), *[fleet.lose_limits_for_long] * many,
            ]  # fmt: skip
            fleet.live_through(happenings, calls)
            left[name] = [fleet.wait_until_free()]
            rough[name] = fleet.report()
            lost[name] = [float(calls - len(rough[name].done))]
        calls_then = ground.amount(2_000, 100)
        with _fleet(ground, name) as fleet:
            fleet.send(calls_then)
            fleet.live_through([fleet.replace_worker] * (1 + 7 * many), calls_then)
            rolled[name] = fleet.report()
    return [
        _most(f"most at once, limit {MOST}", MOST, {n: r.most["api"] for n, r in rough.items()}),
        _most(
            f"most of one key at once, limit {MOST_OF_TENANT}", MOST_OF_TENANT,
            {n: r.most_of_a_tenant for n, r in rough.items()},
        ),
        _most(
            f"most begun within 1 s, rate {RATE}/s and burst {BURST}", RATE + BURST,
            {n: r.most_within(1) for n, r in rough.items()},
        ),
        Figure("calls lost", "calls", lost, targets=dict.fromkeys(lost, Target(0))),
        Figure("bodies more than calls", "bodies",
               {n: [float(r.bodies - calls)] for n, r in rough.items()}),
        Figure(f"until every place is free, lease {LEASE:g} s", "s", left,
               targets=dict.fromkeys(left, Target(LEASE))),
        _most(
            f"most at once in a rolling restart, limit {MOST}", MOST,
            {n: r.most["api"] for n, r in rolled.items()},
        ),
        Figure("longest time without a start in it", "s",
               {n: [r.longest_pause()] for n, r in rolled.items()},
               targets=dict.fromkeys(rolled, Target(LEASE))),
    ]  # fmt: skip


def _most(name: str, bound: int, found: dict[str, int]) -> Figure:
    samples = {broker: [float(number)] for broker, number in found.items()}
    return Figure(name, "calls", samples, targets=dict.fromkeys(samples, Target(bound)))


@contextmanager
def _fleet(ground: Ground, broker: str) -> Iterator[RoughFleet]:
    with _virtual_host(broker) as url:
        place = ground.workplace(url)
        limits = Server(ground.directory, "--appendonly", "yes", "--save", "")
        fleet = RoughFleet(place._workers, place.sender, Redis.from_url(place.url), limits)
        try:
            yield fleet
        finally:
            for worker in fleet.running:
                worker.kill()
            limits.end()


@contextmanager
def _virtual_host(broker: str) -> Iterator[str | None]:
    """Yield the address of a broker of one's own; ``None``: that of the benchmarks' server."""
    if broker == "redis":
        yield None
        return
    _make_host()
    try:
        yield f"amqp://guest:guest@{RABBITMQ[0]}:{RABBITMQ[1]}/{_HOST}"
    finally:
        rabbitmqctl("delete_vhost", _HOST)


def _brokers() -> tuple[str, ...]:
    """Return the brokers: RabbitMQ where there is one that we administer."""
    administered = _make_host()
    rabbitmqctl("delete_vhost", _HOST)
    return ("redis", "rabbitmq") if administered else ("redis",)


def _make_host() -> bool:
    return rabbitmqctl("add_vhost", _HOST) and rabbitmqctl(
        "set_permissions", "-p", _HOST, "guest", ".*", ".*", ".*"
    )
