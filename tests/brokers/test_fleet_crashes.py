"""A lane with a limit over all workers, while these are killed, stopped and replaced.

Never more bodies than the limit, by the bodies' own timestamps, which are those of Redis.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.brokers.test_gate_crashes import give_back_what_the_dead_held
from tests.support.spans import most_at_once
from tests.support.waiting import values_of, wait_until

pytestmark = pytest.mark.slow

APP = "tests.worker.fleet_app"
CALLS = 600
LEASE = 5.0
ENVIRONMENT = {"LEASE": f"{LEASE:g}s", "VISIBILITY": "2"}
#: How long a worker main process stands still, seconds: with the time since its last renewal,
#: a third of a lease at most, it is less than a lease.
STOPPED = 0.5 * LEASE


def start(worker):
    return worker(APP, "-Q", "shared", env=ENVIRONMENT)


def test_no_body_too_many_whatever_happens_to_workers(worker, load_app, broker_url):
    """600 calls on 4 workers, of which some are killed, some stand still, some end and are new."""
    app = load_app(APP, **ENVIRONMENT)
    chance = random.Random(17)
    running = [start(worker) for _ in range(4)]
    killed_at = {}
    results = [app.shared.delay(f"{number}", chance.uniform(0.02, 0.3)) for number in range(CALLS)]

    def kill():
        victim = running.pop(chance.randrange(4))
        pids = victim.pool_pids()
        victim.kill()
        killed_at.update(dict.fromkeys(pids, app.now()))
        running.append(start(worker))
        give_back_what_the_dead_held(app)

    def stand_still():
        victim = chance.choice(running)
        os.kill(victim.pid, signal.SIGSTOP)
        time.sleep(STOPPED)
        os.kill(victim.pid, signal.SIGCONT)

    def replace():
        running.append(start(worker))
        running.pop(0).stop()

    events = [kill] * 4 + [stand_still] * 4 + [replace] * 3
    chance.shuffle(events)
    for event in events:
        done = app.redis().llen("ran:shared")
        wait_until(lambda: app.redis().llen("ran:shared") > done, "calls go on", timeout=30)  # noqa: B023
        event()
    values_of(results, timeout=180, detail=running[0].tail)
    spans = app.ran("shared") + app.cut_short("shared", killed_at)
    assert {name for *_, name in spans} == {str(number) for number in range(CALLS)}
    assert most_at_once(spans) <= 2
    held = "celery-budgets:{limits}:held:@lane:shared"
    wait_until(lambda: app.redis().zcard(held) == 0, "every place is back", timeout=2 * LEASE)
    print(f"{len(killed_at)} processes killed, {len(spans) - CALLS} bodies more than calls")


def test_lost_connections_to_redis_neither_lose_a_call_nor_let_one_too_many_run(
    worker, load_app, broker_url
):
    """Those of agents, of who hears of offers, and on Redis of the broker are cut."""
    app = load_app(APP, **ENVIRONMENT)
    running = [start(worker) for _ in range(2)]
    for number in range(80):
        app.shared.apply_async((str(number), 0.1), ignore_result=True)

    def names():
        return {name for *_, name in app.ran("shared")}

    for cut in range(1, 6):
        wait_until(lambda: len(names()) >= 8 * cut, "calls go on", timeout=30)  # noqa: B023
        for kind in ("normal", "pubsub"):
            app.redis().client_kill_filter(_type=kind, skipme=True)
    wait_until(lambda: len(names()) == 80, "all have run", timeout=40, detail=lambda: said(running))
    assert most_at_once(app.ran("shared")) <= 2


def said(running):
    return "\n".join(each.tail(60) for each in running)
