"""What a call has saved is there in its next attempt, and gone with its outcome."""

from __future__ import annotations

import pytest
from kombu import pools

from tests.brokers.test_gate_crashes import give_back_what_the_dead_held
from tests.support.marks import first_of
from tests.support.waiting import wait_until

APP = "tests.worker.saving_app"


def states(module):
    return list(module.redis().scan_iter("celery-budgets:saved:*"))


def steps(module, result):
    return [int(step) for step in module.redis().lrange(f"steps:{result.id}", 0, -1)]


def has_reached_seven(module, result):
    return len(steps(module, result)) == 7 and states(module)


def took_three_more(module, result):
    """Assert that seven steps were done once, the other three in the second attempt."""
    assert result.get(timeout=30) == 7
    assert steps(module, result) == list(range(1, 11))
    wait_until(lambda: not states(module), "what it saved is deleted")


def test_after_the_worker_was_killed(worker, load_app, broker_url):
    """With SIGKILL, as the kernel does: the message is delivered again."""
    module = load_app(APP)
    running = worker(APP, "-Q", "lane")
    result = module.work.delay()
    wait_until(lambda: has_reached_seven(module, result), "seven steps")
    running.kill()
    if broker_url.startswith("redis"):
        give_back_what_the_dead_held(module)
    worker(APP, "-Q", "lane")
    took_three_more(module, result)


@pytest.mark.parametrize("pool", first_of("prefork", "threads"))
def test_after_the_hard_limit(worker, load_app, pool):
    """Where ``max_kills`` lets the call run again."""
    module = load_app(APP)
    worker(APP, "-Q", "quick", "-P", pool)
    took_three_more(module, module.killed.delay())


@pytest.mark.parametrize("pool", first_of("prefork", "threads", "gevent", "solo"))
def test_after_a_retry(worker, load_app, broker_url, pool):
    module = load_app(APP)
    worker(APP, "-Q", "lane", "-P", pool)
    took_three_more(module, module.retried.delay())


@pytest.mark.parametrize("task", ["failing", "lost"])
def test_a_final_failure_deletes_it(worker, load_app, task):
    module = load_app(APP)
    running = worker(APP, "-Q", "lane")
    result = getattr(module, task).delay()
    with pytest.raises(Exception, match=r"no|exit"):
        result.get(timeout=20)
    wait_until(lambda: not states(module), "what it saved is deleted", detail=running.tail)


def test_a_warm_stop_waits_until_it_is_deleted(worker, load_app):
    """Also that of the last call."""
    module = load_app(APP)
    running = worker(APP, "-Q", "lane")
    results = [module.saves.delay(number) for number in range(20)]
    assert [result.get(timeout=20) for result in results] == list(range(20))
    assert running.stop() == 0
    assert states(module) == []


def test_calls_that_save_nothing_ask_nothing(worker, load_app):
    """No command for it reaches Redis, from whatever process."""
    module = load_app(APP)
    worker(APP, "-Q", "lane")
    with module.redis().monitor() as monitor:
        for _ in range(3):
            module.plain.delay().get(timeout=20)
        module.redis().ping()
        for command in monitor.listen():
            assert "celery-budgets:saved" not in command["command"]
            if command["command"] == "PING":
                break
    pools.reset()


def test_a_state_comes_back_as_json(worker, load_app):
    module = load_app(APP)
    worker(APP, "-Q", "lane")
    state = {"done": [1, 2.5, None, True], "at": "ü"}
    assert module.saves.delay(state).get(timeout=20) == state
    with pytest.raises(ValueError, match=r"saving_app\.saves'.*70002 bytes.*65536"):
        module.saves.delay("x" * 70_000).get(timeout=20)
