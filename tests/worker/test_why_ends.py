"""`lanes why` from a process of its own, on each pool, and about calls that came to odd ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from uuid import uuid4

import pytest

from celery_budgets.sending import sent
from tests.support.marks import first_of
from tests.support.places import ROOT
from tests.support.waiting import wait_until

APP = "tests.worker.why_app"


@pytest.fixture
def why(load_app):
    """The app, and a question that waits for its answer."""
    module = load_app(APP)

    def becomes(task_id, cause):
        def asked():
            found = module.budgets.why(task_id)
            return found if found.cause == cause else None

        return wait_until(asked, cause, timeout=20)

    return module, becomes


def hold(module, name, **options):
    """A call that runs until it is let go."""
    result = module.hold.apply_async((name,), **options)
    wait_until(lambda: module.redis().exists(f"begun:{name}"), f"{name} runs", timeout=30)
    return result


def run(servers, *arguments):
    """Run `celery lanes why ARGUMENTS`, as a process that has sent nothing."""
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", APP, "lanes", "why", *arguments],
        cwd=ROOT, env=os.environ | servers.environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_another_process_is_told_too(why, worker, servers, broker_url):
    """Codes and JSON; on RabbitMQ what is at the broker is told by its lane and its time."""
    module, becomes = why
    worker(APP, "-Q", "narrow")
    first = hold(module, "first", queue="narrow")
    second = module.hold.apply_async(("first",), queue="narrow")
    becomes(second.id, "at_broker")
    done = run(servers, first.id)
    assert done.returncode == 0, done.stderr
    assert f"{first.id} runs; on " in done.stdout
    at = str(sent.sent(second.id).sent_at)
    done = run(servers, second.id, "--json", "--lane", "narrow", "--sent", at)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["cause"], told["lane"], told["position"]) == ("at_broker", "narrow", 0)
    assert told["certain"]
    assert first.id in told["detail"]
    guessed = json.loads(run(servers, second.id, "--json").stdout)
    assert guessed["cause"] == "at_broker"
    assert guessed["certain"] == broker_url.startswith("redis")
    done = run(servers, str(uuid4()), "--lane", "paused")
    assert done.returncode == 3
    assert "is unknown; " in done.stdout
    assert run(servers, first.id, "--lane", "none").returncode == 1
    module.redis().set("go:first", 1)


@pytest.mark.parametrize("pool", first_of("threads", "gevent", "solo", everyday=2))
def test_on_each_pool(why, worker, pool):
    """A solo worker answers only between calls: then nothing is certain."""
    module, becomes = why
    worker(APP, "-Q", "ahead", "-P", pool, "--prefetch-multiplier", "2")
    first = hold(module, "first", queue="ahead")
    second = module.hold.apply_async(("first",), queue="ahead")
    if pool == "solo":
        told = becomes(first.id, "unknown")
        assert "worker that does not answer" in told.detail
        assert not told.certain
    else:
        told = becomes(first.id, "running")
        assert "of its soft limit of 600 s" in told.detail
        held = becomes(second.id, "lane")
        assert (held.position, held.certain) == (0, True)
        assert first.id in held.detail
    module.redis().set("go:first", 1)
    # By the result where the worker has not answered yet.
    assert becomes(second.id, "ended").detail.split()[0] in ("succeeded", "SUCCESS")


def test_odd_ends(why, worker):
    """Revoked, expired, failed, stopped: by the outcome, from the worker that saw it."""
    module, becomes = why
    running = worker(APP, "-Q", "ahead,work", "--prefetch-multiplier", "3")
    hold(module, "first", queue="ahead")
    expired = module.hold.apply_async(("first",), queue="ahead", expires=0.5)
    revoked = module.hold.apply_async(("first",), queue="ahead")
    becomes(revoked.id, "lane")
    module.app.control.revoke(revoked.id)
    stopped = module.hold.apply_async(("never",), soft_time_limit=0.5, time_limit=1.0)
    failed = module.fails.delay()
    assert "failed at" in becomes(failed.id, "ended").detail
    assert "soft_time_limit at" in becomes(stopped.id, "ended").detail
    module.redis().set("go:first", 1)
    for result in (expired, revoked):
        told = becomes(result.id, "ended")
        assert "revoked at" in told.detail
        assert (told.certain, told.worker.split("@")[0]) == (True, running.name)


def test_the_result_tells_when_the_worker_has_forgotten(why, worker):
    """It was restarted, say; without a result nobody knows any more."""
    module, becomes = why
    first = worker(APP, "-Q", "work")
    kept, unkept = module.fails.delay(), module.quick.delay()
    for result in (kept, unkept):
        becomes(result.id, "ended")
    first.stop()
    worker(APP, "-Q", "work")
    told = becomes(kept.id, "ended")
    assert "FAILURE at" in told.detail
    assert told.certain
    assert not becomes(unkept.id, "unknown").certain


def test_a_killed_worker_is_not_taken_for_a_running_call(why, worker):
    """Its message is noted as handed out, and the worker does not answer."""
    module, becomes = why
    running = worker(APP, "-Q", "work")
    result = hold(module, "first")
    becomes(result.id, "running")
    running.kill()
    told = becomes(result.id, "unknown")
    assert "handed it out" in told.detail
    assert running.name in told.detail


def test_an_id_that_is_sent_again(why, worker):
    """Calls with one idempotency key share it: the one that waits counts, not the one before."""
    module, becomes = why
    worker(APP, "-Q", "narrow")
    task_id = str(uuid4())
    module.quick.apply_async(task_id=task_id, queue="narrow")
    becomes(task_id, "ended")
    hold(module, "first", queue="narrow")
    module.quick.apply_async(task_id=task_id, queue="narrow")
    becomes(task_id, "at_broker")
    module.redis().set("go:first", 1)
    becomes(task_id, "ended")


def test_a_plain_task_of_a_budgeted_worker(why, worker):
    """Of the lane whose queue it came from."""
    module, becomes = why
    worker(APP, "-Q", "narrow")
    result = module.plain.apply_async(("first",), queue="narrow")
    assert becomes(result.id, "running").lane == "narrow"
    module.redis().set("go:first", 1)
    becomes(result.id, "ended")
