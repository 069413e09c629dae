"""A key that floods a limit, on real workers: the others hardly notice."""

from __future__ import annotations

import pytest

from celery_budgets.worker.lanes.prefetch import MOST_IN_FLOOD
from tests.support.waiting import values_of, wait_until

APP = "tests.worker.fleet_app"
OTHERS = "abcde"


@pytest.mark.slow
def test_a_flood_of_one_key_is_out_of_the_way_of_others(worker, load_app, broker_url):
    """Calls that come after it start while nearly all of it still waits."""
    app = load_app(APP)
    for _ in range(2):
        running = worker(APP, "-Q", "free", "-P", "threads")
    flood = [app.of_tenant.delay("noisy", f"{n:03}", 0.02) for n in range(200)]
    others = [app.of_tenant.delay(other, str(n), 0.0) for n in range(3) for other in OTHERS]
    values_of(others, timeout=30, detail=running.tail)
    ran = len(app.ran("tenant:noisy"))
    assert ran < 100, "most of the flood waits aside"
    for other in OTHERS:
        # In either order: each worker takes many at once, to put them aside.
        assert sorted(name for *_, name in app.ran(f"tenant:{other}")) == ["0", "1", "2"]
    values_of(flood, timeout=60, detail=running.tail)
    order = [int(name) for *_, name in app.ran("tenant:noisy")]
    # As they came to one of the two workers.
    assert max(abs(place - number) for place, number in enumerate(order)) < 2 * MOST_IN_FLOOD


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
