"""``budgets.call(...)`` in threads: its slot, its limits, how it ends; with no broker at all."""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import subprocess
import sys
import threading
import time

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from celery_budgets import ConfigurationError, RejectedByBudget
from celery_budgets.blocks.process_slots import process_slots
from celery_budgets.blocks.report import BlockReport
from celery_budgets.execution.call import HardLimitReached
from celery_budgets.execution.context import running_call
from celery_budgets.execution.limits.watchdog import watchdog
from celery_budgets.execution.memory import rss as memory
from celery_budgets.model.outcomes import Outcome
from tests.support.waiting import wait_until

#: Seconds after which a body gives up waiting for its limit.
LONG = 10.0


@pytest.fixture(autouse=True)
def _nothing_is_left(budgets):
    """Whatever a test does with blocks, no current block outlives it."""
    yield
    assert running_call() is None


def slots_of(budgets):
    return process_slots(budgets.app, budgets.settings.lanes)


def burn(seconds=LONG):
    """Spend time in Python code."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(100))


def outcomes(budgets, lane="lane"):
    return dict(budgets.local_statistics().lanes[lane].outcomes)


def test_a_block_is_a_call(budgets, caplog):
    """It has a slot, an id and limits, and it is told of like a task."""
    caplog.set_level(logging.INFO, "celery_budgets")
    with budgets.call(
        "lane", task_id="task-123", timeout=600, tool_name="stitch", input_size=1024, wait=5
    ) as call:
        assert slots_of(budgets).active("lane") == 1
        assert 599 < call.remaining() <= 600
        assert call.hard_at - call.soft_at == pytest.approx(300)
        call.check()
        assert running_call() is call
    (record,) = [r for r in caplog.records if r.getMessage().startswith("budgets.call_ended")]
    facts = record.budgets
    assert (facts["task_id"], facts["task"], facts["lane"]) == ("task-123", "stitch", "lane")
    assert facts["outcome"] == "succeeded"
    assert 0 <= facts["seconds"] < 5
    assert 0 < facts["rss_before_bytes"] <= facts["rss_peak_bytes"]
    statistics = budgets.local_statistics().calls["lane", "stitch"]
    assert (statistics.total, statistics.rss_peak_bytes) == (1, facts["rss_peak_bytes"])


def test_its_memory_is_sampled(budgets):
    """The highest RSS while it is open, not only that at its ends."""
    with budgets.call("lane") as call:
        before = memory.rss()
        taken = b"x" * 100_000_000
        wait_until(lambda: call.rss_peak > before + 80_000_000, "the peak is seen")
        del taken
    assert call.rss_after < call.rss_peak


def test_an_id_is_made_where_none_is_given(budgets):
    """And no two are the same."""
    with budgets.call("lane") as first, budgets.call("lane") as second:
        assert first.task_id
        assert first.task_id != second.task_id


def test_a_decorated_function_is_a_call_each_time(budgets):
    """With its own name, its value and its errors."""

    @budgets.call("one", timeout=600)
    def half(number):
        """Return the half."""
        return number / 2

    assert half.__doc__ == "Return the half."
    assert [half(number) for number in (2, 4)] == [1, 2]
    with pytest.raises(TypeError):
        half("text")
    name = f"{__name__}.{half.__qualname__}"
    assert dict(budgets.local_statistics().tasks[name].outcomes) == {"succeeded": 2, "failed": 1}


def test_what_yields_is_not_decorated(budgets):
    """Its limit would interrupt whoever it yields to."""
    with pytest.raises(TypeError, match="yields"):

        @budgets.call("lane")
        def numbers():
            yield 1


def test_it_is_entered_once(budgets):
    """A second time would be the same call."""
    block = budgets.call("lane")
    with block:
        pass
    with pytest.raises(RuntimeError, match="once"), block:
        pass
    with (block := budgets.call("one")):
        with pytest.raises(RuntimeError, match="once"), block:
            pass
        assert slots_of(budgets).active("one") == 1


def test_an_unknown_lane_names_the_nearest(budgets):
    """As everywhere."""
    with pytest.raises(ConfigurationError, match="did you mean 'lane'"), budgets.call("lan"):
        pass


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"timeout": -1}, r"budgets.call\('lane'\): timeout: -1 must be above 0"),
        ({"timeout": "soon"}, r"budgets.call\('lane'\): timeout: 'soon'"),
        ({"timeout": 10, "hard_timeout": 5}, "must be below hard_timeout"),
        ({"timout": 10}, "did you mean 'timeout'"),
        ({"wait": -1}, r"budgets.call\('lane'\): wait: -1 must not be below 0"),
        ({"wait": "never"}, r"budgets.call\('lane'\): wait: 'never'"),
        ({"input_size": "big"}, r"budgets.call\('lane'\): input_size: 'big'"),
    ],
)
def test_wrong_numbers_are_named(budgets, wrong, said):
    """What, where and the remedy, before anything runs."""
    with pytest.raises(ConfigurationError, match=said), budgets.call("lane", **wrong):
        raise AssertionError("it ran")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError, "failed"),
        (KeyboardInterrupt, "worker_lost"),
        (SystemExit, "worker_lost"),
        (GeneratorExit, "revoked"),
        (MemoryError, "memory_limit"),
    ],
)
def test_every_way_out_gives_the_slot_back(budgets, error, outcome):
    """And the error goes on as it is."""
    with pytest.raises(error), budgets.call("lane"):
        raise error
    assert slots_of(budgets).active() == 0
    assert outcomes(budgets) == {outcome: 1}


def test_a_generator_that_is_closed_gives_the_slot_back(budgets):
    """By its consumer, or by the garbage collector."""

    def numbers():
        with budgets.call("lane"):
            yield 1
            yield 2

    for _ in numbers():
        break
    gc.collect()
    assert slots_of(budgets).active() == 0
    assert outcomes(budgets) == {"revoked": 1}


def test_a_full_lane_refuses_at_once(budgets):
    """By default nobody waits; the refusal is counted, and is an outcome."""
    with budgets.call("one"):
        refused = threading.Thread(target=refuse, args=(budgets, "lane_concurrency"))
        refused.start()
        refused.join(10)
    assert outcomes(budgets, "one") == {"succeeded": 1, "rejected": 1}
    assert dict(budgets.local_statistics().total.rejections) == {"lane_concurrency": 1}


def refuse(budgets, reason):
    with pytest.raises(RejectedByBudget, match=reason), budgets.call("one"):
        raise AssertionError("it ran")


def test_who_waits_gets_the_slot(budgets):
    """The wait is no part of its time, and is told beside it."""
    opened, leave = threading.Event(), threading.Event()

    def hold():
        with budgets.call("one"):
            opened.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert opened.wait(10)
    threading.Timer(0.2, leave.set).start()
    with budgets.call("one", tool_name="waits", wait=10, timeout=5) as call:
        assert 4.5 < call.remaining() <= 5
    holder.join(10)
    assert 0.1 < budgets.local_statistics().tasks["waits"].wait.maximum < 10


def test_its_own_slot_is_not_waited_for(budgets):
    """It would be for ever."""
    with (
        budgets.call("one"),
        pytest.raises(RejectedByBudget, match="nested"),
        budgets.call("one", wait=None),
    ):
        raise AssertionError("it ran")


def test_the_soft_limit_in_python_code(budgets):
    """In the main thread of a plain process."""
    began = time.monotonic()
    with pytest.raises(SoftTimeLimitExceeded), budgets.call("lane", timeout=0.2):
        burn()
    assert 0.2 <= time.monotonic() - began < LONG / 2
    assert outcomes(budgets) == {"soft_time_limit": 1}
    assert budgets.local_statistics().total.soft_limit_exceeded == 1


def test_the_soft_limit_may_be_swallowed(budgets):
    """The call succeeds then, and says that it was over."""
    with budgets.call("lane", timeout=0.2), contextlib.suppress(SoftTimeLimitExceeded):
        burn()
    assert outcomes(budgets) == {"succeeded": 1}
    assert budgets.local_statistics().total.soft_limit_exceeded == 1


def test_the_soft_limit_that_only_warns(budgets):
    """It is noted, and nothing is raised."""
    with budgets.call("warned", timeout=0.1, hard_timeout=30) as call:
        wait_until(lambda: call.soft_exceeded, "the limit is over")
    assert outcomes(budgets, "warned") == {"succeeded": 1}
    assert budgets.local_statistics().total.soft_limit_exceeded == 1


def test_the_hard_limit_is_not_swallowed(budgets):
    """``except Exception`` does not keep a body alive, and its caller gets Celery's error."""
    began = time.monotonic()

    @budgets.call("lane", timeout=0.1)
    def stubborn():
        while True:
            with contextlib.suppress(Exception):
                burn()

    with pytest.raises(TimeLimitExceeded):
        stubborn()
    assert time.monotonic() - began < LONG / 2
    assert outcomes(budgets) == {"hard_time_limit": 1}


def test_the_hard_limit_in_a_thread(budgets):
    """Of the thread alone, and not of the one that waits for it."""
    caught = []

    def run():
        with pytest.raises(TimeLimitExceeded) as error, budgets.call("warned", timeout=0.1):
            burn()
        caught.append(error.value)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(LONG)
    assert len(caught) == 1


def test_what_comes_back_late_is_over_its_limit(budgets):
    """A blocking call that nothing could interrupt."""
    with pytest.raises(TimeLimitExceeded), budgets.call("lane", timeout=0.1):
        time.sleep(0.5)
    assert outcomes(budgets) == {"hard_time_limit": 1}


def test_it_may_be_extended(budgets):
    """Up to ``max_timeout``."""
    with budgets.call("lane", timeout=0.2, max_timeout=30) as call:
        assert call.extend(60) == pytest.approx(29.8)
        burn(0.5)
    assert outcomes(budgets) == {"succeeded": 1}


def test_a_limit_around_it_ends_both(budgets):
    """The inner one has what the outer one has left; the code between is interrupted once."""
    raised = []

    def between(outer):
        try:
            with budgets.call("one", timeout=600) as inner:
                assert inner.soft_at == outer.soft_at
                assert inner.hard_at == outer.hard_at
                assert inner.extend(60) == 0
                burn()
        except SoftTimeLimitExceeded as exc:
            raised.append(exc)
            burn(0.3)
            raise

    limits = {"timeout": 0.3, "hard_timeout": LONG}
    with pytest.raises(SoftTimeLimitExceeded), budgets.call("lane", **limits) as outer:
        between(outer)
    assert len(raised) == 1
    assert outcomes(budgets) == outcomes(budgets, "one") == {"soft_time_limit": 1}


def test_a_hard_limit_around_it_ends_both(budgets):
    """The inner edge does not make an error of it that the code between could catch."""
    raised = []

    def between():
        try:
            with budgets.call("one", timeout=600, soft="warn"):
                burn()
        except BaseException as exc:
            raised.append(type(exc))
            raise

    with pytest.raises(TimeLimitExceeded), budgets.call("warned", timeout=0.2):
        between()
    assert raised == [HardLimitReached]
    assert outcomes(budgets, "one") == outcomes(budgets, "warned") == {"hard_time_limit": 1}


def test_an_inner_limit_ends_the_inner_one_alone(budgets):
    """The outer one goes on."""
    with budgets.call("lane", timeout=600):
        with pytest.raises(TimeLimitExceeded), budgets.call("one", timeout=0.1, soft="warn"):
            burn()
        with pytest.raises(SoftTimeLimitExceeded), budgets.call("one", timeout=0.1):
            burn()
        burn(0.3)
    assert outcomes(budgets) == {"succeeded": 1}


def test_what_is_past_its_soft_limit_may_tidy_up(budgets):
    """In a block with what is left to the hard limit; past that there is none."""
    block = budgets.call("warned", timeout=0.1, hard_timeout=LONG)
    with block as outer:
        wait_until(lambda: outer.soft_exceeded, "the soft limit is over")
        with budgets.call("one", timeout=600) as inner:
            assert 0 < inner.remaining() < LONG / 1.5
            assert inner.hard_at == outer.hard_at
        watchdog().release(outer)  # so that the refusal is seen, and not the limit itself
        outer.hard_at = time.monotonic()
        with pytest.raises(RejectedByBudget, match="deadline"), budgets.call("one"):
            raise AssertionError("it ran")
        outer.hard_at += LONG


def test_ctrl_c_while_it_waits(budgets):
    """It leaves the line, and takes no slot."""
    opened, leave = threading.Event(), threading.Event()

    def hold():
        with budgets.call("one"):
            opened.set()
            leave.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    assert opened.wait(10)
    main = threading.get_ident()

    def interrupt():
        wait_until(lambda: slots_of(budgets).waiting("one"), "it waits")
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt), budgets.call("one", wait=None):
        raise AssertionError("it ran")
    assert slots_of(budgets).waiting("one") == 0
    leave.set()
    holder.join(10)


def test_limits_that_fire_anywhere_leave_nothing_behind(budgets):
    """Short limits hit blocks on their way in and out; no slot is lost and none counts twice."""

    @budgets.call("lane", timeout=0.011, hard_timeout=0.02)
    def wrap_many():
        for _ in range(200):
            with budgets.call("one", timeout=0.0005):
                pass

    done = 0
    until = time.monotonic() + 3
    while time.monotonic() < until:
        with contextlib.suppress(SoftTimeLimitExceeded, TimeLimitExceeded, RejectedByBudget):
            wrap_many()
        done += 1
        assert slots_of(budgets).active() == 0
        assert running_call() is None
    assert done > 20
    burn(0.3)  # what is still to be raised, would be here
    assert budgets.local_statistics().lanes["lane"].total == done


def test_a_block_whose_exit_was_cut_short_gives_its_slot_back(budgets):
    """A limit may be raised as ``__exit__`` begins: before its first line, where nothing helps."""
    block = budgets.call("one", timeout=5)
    call = block.__enter__()
    assert slots_of(budgets).active() == 1
    call.soft_sent = True
    del block
    assert (slots_of(budgets).active(), running_call()) == (0, None)
    assert call.outcome is Outcome.SOFT_TIME_LIMIT
    assert budgets.local_statistics().lanes["one"].total == 1


def test_a_block_that_could_not_be_entered_counts_once(budgets, monkeypatch):
    """Its call was made by then."""

    def raise_here(*_):
        raise ValueError("from a tracer of the program")

    monkeypatch.setattr(BlockReport, "started", raise_here)
    block = budgets.call("one", timeout=5)
    with pytest.raises(ValueError, match="tracer"):
        block.__enter__()
    del block
    assert slots_of(budgets).active() == 0
    assert budgets.local_statistics().lanes["one"].total == 1


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import gevent
from contextlib import suppress
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery_budgets import Budgets, Lane

budgets = Budgets(Celery("web", broker="redis://127.0.0.1:1/0"), lanes=[Lane("lane", 2)])

def run(stubborn):
    try:
        with budgets.call("lane", timeout=0.2, wait=None):
            while stubborn:
                with suppress(Exception):
                    gevent.sleep(20)
            gevent.sleep(20)
    except Exception as exc:
        return type(exc).__name__

jobs = [gevent.spawn(run, stubborn) for stubborn in (False, True, False)]
gevent.joinall(jobs, timeout=30)
print(*(job.value for job in jobs))
"""


def test_in_greenlets():
    """Limits where a greenlet yields, each for itself; waiting blocks no other."""
    pytest.importorskip("gevent")
    done = subprocess.run(
        [sys.executable, "-c", GREENLETS], capture_output=True, text=True, timeout=60, check=False
    )
    told = "SoftTimeLimitExceeded TimeLimitExceeded SoftTimeLimitExceeded"
    assert done.stdout.strip() == told, done.stderr


def test_ten_thousand_leave_nothing_behind(budgets):
    """Neither memory nor slots nor objects."""
    logging.getLogger("celery_budgets").setLevel(logging.WARNING)

    @budgets.call("lane", tool_name="wrapped")
    def wrapped():
        return 1

    def wrap(times):
        for _ in range(times):
            wrapped()
        gc.collect()
        return len(gc.get_objects()), memory.rss()

    wrap(1_000)
    objects, rss = wrap(100)
    more_objects, more_rss = wrap(10_000)
    assert more_objects - objects < 1_000
    assert more_rss - rss < 5_000_000
    assert slots_of(budgets).active() == 0
    assert budgets.local_statistics().tasks["wrapped"].total == 11_100


def test_a_failure_of_ours_fails_no_call(budgets, monkeypatch, caplog):
    """Neither the watchdog nor the statistics; it is logged."""
    from celery_budgets.blocks import block
    from celery_budgets.telemetry.statistics import Statistics

    def broken(*_):
        raise OSError("broken")

    monkeypatch.setattr(block.watchdog(), "watch", broken)
    monkeypatch.setattr(memory, "rss", broken)
    monkeypatch.setattr(Statistics, "add", broken)
    with budgets.call("lane"):
        pass
    assert "budgets.watchdog_failed" in caplog.text
    assert "budgets.telemetry_failed" in caplog.text
