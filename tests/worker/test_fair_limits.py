"""A key that floods a limit, on real workers: the others hardly notice."""

from __future__ import annotations

import pytest

from celery_budgets.shared_state.scripts.asides import aside_pattern
from tests.support.waiting import values_of, wait_until

APP = "tests.worker.fleet_app"
OTHERS = "abcde"
LINES = "celery-budgets:{limits}:line:tenant:"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_flood_of_one_key_is_out_of_the_way_of_others(worker, load_app, broker_url, workers):
    """Calls that come after it start while nearly all of it still waits, each key in its order.

    Two workers that take two calls of a key at the same moment may ask in either order.
    """
    app = load_app(APP)
    for _ in range(workers):
        running = worker(APP, "-Q", "free", "-P", "threads")
    flood = [app.of_tenant.delay("noisy", f"{n:03}", 0.02) for n in range(200)]
    others = [app.of_tenant.delay(other, str(n), 0.0) for n in range(3) for other in OTHERS]
    values_of(others, timeout=30, detail=running.tail)
    ran = len(app.ran("tenant:noisy"))
    assert ran < 100, "most of the flood waits aside"
    for other in OTHERS:
        order = [name for *_, name in app.ran(f"tenant:{other}")]
        assert (order if workers == 1 else sorted(order)) == ["0", "1", "2"]
    aside = wait_until(lambda: all_aside(app, flood), "the rest is aside", detail=running.tail)
    values_of(flood, timeout=60, detail=running.tail)
    order = [int(name) for *_, name in app.ran("tenant:noisy")]
    assert (order if workers == 1 else sorted(order)) == list(range(200))
    assert [number for number in order if number in aside] == aside, "as workers have asked"


def all_aside(app, flood):
    """Return the numbers of *flood* in the line of their key, once all that have not run do so."""
    redis, numbers = app.redis(), {aside_pattern(one.id)[:-1]: n for n, one in enumerate(flood)}
    lines = [redis.zrange(key, 0, -1) for key in redis.scan_iter(f"{LINES}*")]
    line = max(lines, key=len, default=[])
    if len(line) + len(app.ran("tenant:noisy")) < len(flood) - 2:  # on their way, or running
        return None
    names = [member.decode().removeprefix("aside:").partition(" ")[0] for member in line]
    return [numbers[name.partition("-")[0] + "-"] for name in names]


def test_what_keys_share_goes_to_those_that_have_used_least(worker, load_app, broker_url):
    """One place for all: a key that floods has it only while no other waits for it."""
    app = load_app(APP)
    for _ in range(2):
        running = worker(APP, "-Q", "free", "-P", "threads")
    flood = [app.through.delay("noisy", f"{n:02}", 0.1) for n in range(60)]
    wait_until(lambda: len(app.ran("through")) > 15, "it has used much", detail=running.tail)
    sent = app.now()
    others = [app.through.delay(other, str(n), 0.1) for n in range(2) for other in OTHERS]
    values_of(others, timeout=30, detail=running.tail)
    spans = [(began, name) for began, _, name in app.ran("through") if began > sent]
    last = max(place for place, (_, name) in enumerate(spans) if not name.startswith("noisy"))
    between = [name for _, name in spans[:last] if name.startswith("noisy")]
    assert len(between) <= 8, spans
    values_of(flood, timeout=60, detail=running.tail)
    order = [name for *_, name in app.ran("through") if name.startswith("noisy")]
    assert sorted(order) == [f"noisy:{n:02}" for n in range(60)]
