"""Cancelled timers do not gather: kombu alone keeps each until it would have been due."""

from __future__ import annotations

from heapq import heappop

import pytest
from celery.concurrency.asynpool import AsynPool
from kombu.asynchronous.timer import Timer

from celery_budgets.worker.timers import SPARE, CallTimers


class Hub:
    """An event loop, as far as timers go."""

    call_later = None

    def __init__(self):
        self.timer = Timer()


@pytest.fixture
def hub():
    return Hub()


@pytest.fixture
def timer(hub):
    return hub.timer


def end(timers, job):
    """End a call as AsynPool does: pop its timer, and cancel it."""
    timers.pop(job).cancel()


def test_kombu_keeps_cancelled_timers(timer):
    """The reason for all this; when it fails, kombu has mended it."""
    timer.call_after(300, print).cancel()
    assert len(timer) == 1


def test_cancelled_timers_are_dropped(hub, timer):
    """However many calls end, there is never much more than SPARE."""
    timers = CallTimers(hub)
    for job in range(10 * SPARE):
        timers[job] = timer.call_after(300, print)
        end(timers, job)
        assert len(timer) <= SPARE + 2
    assert not timers


def test_the_others_stay_in_their_order(hub, timer):
    """A timer that was not cancelled is still due at its time."""
    timers = CallTimers(hub)
    for job in range(4 * SPARE):
        timers[job] = timer.call_after(300 - job % 7, print, (job,))
    for job in range(0, 4 * SPARE, 2):
        end(timers, job)
    left = [heappop(timer._queue) for _ in range(len(timer))]
    assert [entry.eta for entry in left] == sorted(entry.eta for entry in left)
    kept = {entry.entry.args[0] for entry in left if not entry.entry.canceled}
    assert kept == set(range(1, 4 * SPARE, 2)) == set(timers)


def test_a_timer_that_is_gone_is_told_as_celery_expects(hub):
    """AsynPool._discard_tref passes over a KeyError."""
    with pytest.raises(KeyError):
        CallTimers(hub).pop(1)


def test_the_pool_takes_the_table_that_is_there(hub):
    """AsynPool._create_timelimit_handlers makes one only where there is none."""

    class Pool:
        _tref_for_id = table = CallTimers(hub)

    pool = Pool()
    AsynPool._create_timelimit_handlers(pool, hub)
    assert pool._tref_for_id is pool.table
    assert pool.on_timeout_set.__closure__ is not None
