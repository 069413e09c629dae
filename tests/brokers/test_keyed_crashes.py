"""Idempotency keys while their holders are killed: each effect once, and a result for everybody."""

from __future__ import annotations

import contextlib
import os
import random
import signal

import pytest

from celery_budgets.idempotency.run_once import task_id_of
from tests.brokers.test_gate_crashes import give_back_what_the_dead_held
from tests.support.waiting import values_of, wait_until
from tests.worker.test_keyed import delete_queues

pytestmark = pytest.mark.slow

APP = "tests.worker.keyed_app"
KEYS = [f"key-{number}" for number in range(50)]
DUPLICATES = 10
#: They end after the last kill, however long a busy machine takes to replace the workers.
HELD = KEYS[:3]
#: Kills of a pool process alone, and of a whole worker, which is then replaced.
PROCESSES, WORKERS = 12, 3
ENVIRONMENT = {"LEASE": "2s"}


@pytest.fixture
def app(load_app, servers, broker_url):
    """The app of the tests, on each broker in turn."""
    app = load_app(APP, **ENVIRONMENT)
    delete_queues(app)
    return app


def start(worker):
    return worker(APP, "-Q", "keyed", "-c", "2", env=ENVIRONMENT)


def state_of(app, key):
    name = f"celery-budgets:call:{task_id_of(app.work.name, key)}"
    return app.redis().hget(name, "state")


def is_between_effect_and_note(app):
    """Is an effect stored whose lease is not done yet? A kill there repeats it, by any means."""
    app.redis().ping()  # what a stopped process has sent is taken in by now
    app.redis().ping()
    return any(
        app.redis().exists(f"effect:{key}") and state_of(app, key) != b"done" for key in KEYS
    )


def working(app):
    """The processes that are in a body now."""
    return {int(pid) for pid in app.redis().mget([f"working:{key}" for key in KEYS]) if pid}


def signalled(how, processes):
    """Send a signal to each of *processes*; return those that were still there."""
    there = []
    for pid in processes:
        # One whose lease could not be kept is ended by its own worker, at any moment.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
            there.append(pid)
    return there


def kill_a_holder(app, processes, kill):
    """Stop *processes*; kill where one of them is in a body and none has stored an effect."""
    stopped = signalled(signal.SIGSTOP, processes)
    fit = working(app) & set(stopped) and not is_between_effect_and_note(app)
    if fit and kill():
        return True
    signalled(signal.SIGCONT, stopped)
    return False


def test_holders_killed_at_random(worker, app, broker_url):
    """500 duplicates of 50 keys on 4 workers, 15 kills: 50 effects, 500 results."""
    chance = random.Random(50)
    running = [start(worker) for _ in range(4)]
    calls = [key for key in KEYS for _ in range(DUPLICATES)]
    chance.shuffle(calls)
    app.redis().mset({f"held:{key}": 1 for key in HELD})
    results = [
        app.work.apply_async((key, chance.uniform(0.5, 1.5)), idempotency_key=key) for key in calls
    ]

    def kill_process():
        victim = chance.choice([each for each in running if each.pool_pids()])
        pids = [pid for pid in victim.pool_pids() if pid in working(app)][:1]
        return bool(pids) and kill_a_holder(app, pids, lambda: signalled(signal.SIGKILL, pids))

    def kill_worker():
        victim = chance.choice(running)
        if not kill_a_holder(app, victim.pool_pids(), lambda: victim.kill() or True):
            return False
        running[running.index(victim)] = start(worker)
        give_back_what_the_dead_held(app)
        return True

    kills = [kill_process] * PROCESSES + [kill_worker] * WORKERS
    chance.shuffle(kills)
    for kill in kills:
        wait_until(kill, "a holder to kill", timeout=30, detail=running[0].tail)
    app.redis().delete(*(f"held:{key}" for key in HELD))
    values = values_of(results, timeout=90, detail=running[0].tail)
    assert values == [1] * len(calls), running[0].tail()
    assert [int(app.redis().get(f"effect:{key}")) for key in KEYS] == [1] * len(KEYS)
    begun = sum(int(app.redis().get(f"begun:{key}")) for key in KEYS)
    print(f"{len(kills)} kills, {begun} bodies begun for {len(KEYS)} effects")
    # Not each one: a body that was stopped for its lease is at work no more, and still listed.
    assert begun >= len(KEYS) + len(kills) // 2
