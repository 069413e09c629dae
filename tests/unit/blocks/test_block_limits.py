"""Blocks that name limits over the fleet: on a real server, as two programs would."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import subprocess
import sys
import threading
import time

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from celery_budgets import BudgetedTask, Budgets, ConfigurationError, Lane, Limit, RejectedByBudget
from celery_budgets.blocks import limited_slots
from tests.support.waiting import wait_until

LIMITS = [
    Limit("one", 1),
    Limit("two", 2),
    Limit("tenant", 1, key="tenant_id"),
    Limit("rate", rate="1/m"),
    Limit("run", 1, on_outage="run"),
]


@pytest.fixture
def program(redis_url):
    """A function that returns the budgets of another program on the same Redis."""
    made = []

    def make(url=redis_url, **conf):
        app = Celery("blocks", broker=url, backend=url, set_as_current=False)
        app.conf.update(conf)
        made.append(Budgets(app, lanes=[Lane("lane", 8)], limits=LIMITS))
        return made[-1]

    yield make
    for budgets in made:
        for agent in limited_slots._agents.of(budgets.app):
            agent.stop()


def refused(budgets, *limits, wait=0.0, **keys):
    """Return why a block is refused that is not within the blocks around."""
    return contextvars.Context().run(_refused, budgets, limits, wait, keys)


def _refused(budgets, limits, wait, keys):
    with (
        pytest.raises(RejectedByBudget) as caught,
        budgets.call("lane", limits=limits, limit_keys=keys, wait=wait),
    ):
        pass
    return caught.value.reason


def test_two_programs_share_a_limit(program):
    """The other one is refused, until the first has left its block."""
    first, second = program(), program()
    with first.call("lane", limits=["one"]):
        assert refused(second, "one") == "limit"
        assert refused(second, "two", "one", wait=0.1) == "limit"
        with second.call("lane", limits=["two"]), first.call("lane", limits=["two"]):
            assert refused(second, "two") == "limit"
        with second.call("lane"):
            pass
    with second.call("lane", limits=["one", "two"], wait=5):
        pass


def test_who_waits_goes_on_at_once(program):
    """In the order of asking, and not only when it looks again."""
    first, second = program(), program()
    ended = []

    def wait(budgets, name):
        with budgets.call("lane", limits=["one"], wait=None):
            ended.append((name, time.monotonic()))

    with first.call("lane", limits=["one"]):
        threads = []
        for number, budgets in enumerate((second, first, second)):
            thread = threading.Thread(target=wait, args=(budgets, number))
            thread.start()
            threads.append(thread)
            time.sleep(0.1)  # they ask one after the other
        began = time.monotonic()
    for thread in threads:
        thread.join(10)
    assert [name for name, _ in ended] == [0, 1, 2]
    assert ended[-1][1] - began < 2.0


def test_each_key_has_the_limit_for_itself(program):
    """And all blocks without one share one, which is told once."""
    budgets = program()
    with budgets.call("lane", limits=["tenant"], limit_keys={"tenant": "acme"}):
        assert refused(budgets, "tenant", tenant="acme") == "limit"
        with budgets.call("lane", limits=["tenant"], limit_keys={"tenant": "other"}):
            pass
        with budgets.call("lane", limits=["tenant"]):
            assert refused(budgets, "tenant") == "limit"


def test_a_missing_key_is_told_once(program, caplog):
    """Per limit and process."""
    limited_slots._told.clear()
    budgets = program()
    for _ in range(2):
        with budgets.call("lane", limits=["tenant"]):
            pass
    told = [record for record in caplog.records if "limit_key_missing" in record.message]
    assert len(told) == 1


def test_a_rate_is_for_all_programs(program):
    """One a minute: the second is refused, in another program too."""
    with program().call("lane", limits=["rate"]):
        pass
    assert refused(program(), "rate", wait=0.2) == "limit"


def test_in_coroutines(program):
    """The event loop runs on while one waits."""
    first, second = program(), program()

    async def main():
        async with first.call("lane", limits=["one"]):
            waiting = apart(hold(None))
            with pytest.raises(RejectedByBudget, match="limit"):
                await apart(hold(0))
            cancelled = apart(hold(None))
            await asyncio.sleep(0.2)
            cancelled.cancel()
            assert not waiting.done()
        await asyncio.wait_for(waiting, 5)

    async def hold(wait):
        async with second.call("lane", limits=["one"], wait=wait):
            pass

    def apart(coroutine):
        """Run it as no block within the block around."""
        loop = asyncio.get_running_loop()
        return loop.create_task(coroutine, context=contextvars.Context())

    asyncio.run(main())
    with first.call("lane", limits=["one"], wait=5):
        pass


def test_a_block_never_waits_for_the_one_around_it(program):
    """The limit would not be free before the inner one has ended."""
    budgets = program()
    with (
        budgets.call("lane", limits=["one"]),
        pytest.raises(RejectedByBudget, match="nested"),
        budgets.call("lane", limits=["one"], wait=None),
    ):
        pass


def test_a_killed_program_holds_its_place_for_a_lease(program, redis_url):
    """And no longer."""
    code = (
        "from celery import Celery; from celery_budgets import *; import os\n"
        f"app = Celery('other', broker={redis_url!r}, backend={redis_url!r})\n"
        "app.conf.budgets_idempotency_lease = 1\n"
        "with Budgets(app, limits=[Limit('one', 1)]).call('critic', limits=['one']):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    budgets = program()
    with budgets.call("lane", limits=["one"], wait=10):
        pass


def test_a_program_that_ends_gives_back_what_it_has(program, redis_url):
    """Also where it ends inside a block."""
    code = (
        "from celery import Celery; from celery_budgets import *\n"
        f"app = Celery('other', broker={redis_url!r}, backend={redis_url!r})\n"
        "block = Budgets(app, limits=[Limit('one', 1)]).call('critic', limits=['one'])\n"
        "block.__enter__()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with program().call("lane", limits=["one"], wait=0):
        pass


def test_who_lost_its_place_is_ended(program):
    """At its soft limit at once, in case others run in its place."""
    first, second = program(budgets_idempotency_lease=1), program()
    over = threading.Event()
    thread = threading.Thread(target=hold_long, args=(second, over))
    ends = contextlib.suppress(SoftTimeLimitExceeded, TimeLimitExceeded)
    with ends, first.call("lane", limits=["one"], timeout=60):
        (agent,) = limited_slots._agents.of(first.app)
        held = dict(agent._held)
        agent._held.clear()  # it stands still
        thread.start()
        wait_until(lambda: _holds(second), "the other one has the place")
        agent._held.update(held)
        agent._bell.ring()
        for _ in range(100):
            time.sleep(0.05)
        pytest.fail("it ran on")
    over.set()
    thread.join(10)


def _holds(budgets):
    return any(agent._held for agent in limited_slots._agents.of(budgets.app))


def hold_long(budgets, over):
    with budgets.call("lane", limits=["one"], wait=None):
        over.wait(20)


def test_without_redis_a_block_is_refused_or_waits(program):
    """With a reason of its own; it runs after one lease where its limit says so."""
    budgets = program("redis://127.0.0.1:1/0", budgets_idempotency_lease=1)
    assert refused(budgets, "one", wait=0.1) == "limit_unknown"
    with budgets.call("lane", limits=["run"], wait=10):
        pass


@pytest.mark.parametrize(
    ("limits", "keys", "words"),
    [
        (["on"], {}, "limit 'on' is not known; did you mean 'one'?"),
        (["one"], {"one": "x"}, "limit_keys: 'one' is no limit with keys of this block"),
        ([], {"tenant": "x"}, "limit_keys: 'tenant' is no limit with keys of this block"),
    ],
)
def test_what_is_wrong_is_told_when_the_block_begins(program, limits, keys, words):
    """With the remedy."""
    budgets = program()
    with (
        pytest.raises(ConfigurationError) as caught,
        budgets.call("lane", limits=limits, limit_keys=keys),
    ):
        pass
    assert words in str(caught.value)


def test_a_limit_needs_redis():
    """Told when the first block with one begins."""
    app = Celery("none", broker="memory://", set_as_current=False)
    budgets = Budgets(app, limits=LIMITS)
    with (
        pytest.raises(ConfigurationError, match="a limit over the fleet needs a Redis"),
        budgets.call("critic", limits=["one"]),
    ):
        pass


def test_the_limits_of_a_task_are_a_list_of_names(program):
    """Not one name as text, which is a list of letters."""
    with pytest.raises(ConfigurationError, match="limits 'one' must be a list of names"):
        program().app.task(base=BudgetedTask, limits="one", name="t", lazy=False)(refused)


def test_blocks_without_limits_do_not_import_redis():
    """Nor does the package."""
    code = (
        "from celery import Celery; from celery_budgets import *; import sys\n"
        "app = Celery('other', broker='memory://')\n"
        "with Budgets(app, limits=[Limit('one', 1)]).call('critic'): pass\n"
        "assert 'redis' not in sys.modules, 1\n"
        "assert 'celery_budgets.shared_state.limit_agent' not in sys.modules, 2\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
