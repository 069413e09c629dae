"""Whom a soft signal in a pool process is for, where it comes at an odd time."""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_budgets import Budget
from celery_budgets.execution.call import Call
from celery_budgets.execution.limits import interrupts
from celery_budgets.execution.limits.interrupts import ProcessInterrupt
from celery_budgets.model.budget import TimeLimits


@pytest.fixture
def process(monkeypatch):
    """A process, its call of 10 s, and what its worker has noted: whether that is terminated."""
    before = signal.getsignal(signal.SIGUSR1)
    made = SimpleNamespace(interrupt=ProcessInterrupt(), terminated=False, call=call())
    recorder = SimpleNamespace(is_terminated=lambda one: made.terminated)
    monkeypatch.setattr(interrupts, "recorder", lambda: recorder)
    yield made
    signal.signal(signal.SIGUSR1, before)


def call(at_soft="raise"):
    return Call("id", "critic", Budget(soft=at_soft), TimeLimits(10.0, 15.0))


def test_a_call_that_is_terminated_before_its_body(process):
    """The signal comes between acceptance and body, and raises as soon as that begins."""
    signal.signal(signal.SIGUSR1, process.interrupt._handler)
    signal.raise_signal(signal.SIGUSR1)
    process.terminated = True
    with pytest.raises(SoftTimeLimitExceeded):
        process.interrupt.enter(process.call)
    assert process.call.terminated


def test_a_signal_for_an_earlier_call(process):
    """Between two calls it is nobody's, and at the beginning of one it may be late."""
    signal.signal(signal.SIGUSR1, process.interrupt._handler)
    signal.raise_signal(signal.SIGUSR1)
    process.interrupt.enter(process.call)
    signal.raise_signal(signal.SIGUSR1)
    assert not process.call.soft_sent


@pytest.mark.parametrize("at_soft", ["raise", "warn"])
def test_a_signal_that_nobody_of_ours_has_sent(process, at_soft):
    """A second after the beginning it is an operator's, also where the soft limit only warns."""
    process.call = call(at_soft)
    process.interrupt.enter(process.call)
    process.call.started_mono -= 2.0
    process.call.soft_at = process.call.started_mono + 10.0
    with pytest.raises(SoftTimeLimitExceeded):
        signal.raise_signal(signal.SIGUSR1)
    assert not process.call.soft_sent


def test_a_signal_to_a_call_that_was_extended(process):
    """It may have been meant for its earlier deadline."""
    process.interrupt.enter(process.call)
    process.call.started_mono -= 2.0
    process.call.extend(5.0)
    signal.raise_signal(signal.SIGUSR1)
    assert not process.call.soft_sent


def test_a_terminated_call_past_its_soft_limit(process):
    """It is told again, though it has had its soft limit."""
    process.interrupt.enter(process.call)
    process.call.soft_sent, process.terminated = True, True
    with pytest.raises(SoftTimeLimitExceeded):
        signal.raise_signal(signal.SIGUSR1)


def test_a_call_does_not_end_while_its_process_does(process, monkeypatch):
    """A body that waited for a child comes back as that is ended: too late to have an outcome."""
    open_at_exit, leaves = [], []

    def end_children(call):
        # As the main thread does, whose child has just ended.
        leaves.append(threading.Thread(target=process.interrupt.leave, args=(call,), daemon=True))
        leaves[0].start()
        leaves[0].join(0.2)

    family = SimpleNamespace(ask_to_end=end_children)
    recorder = SimpleNamespace(killed=lambda call, reason: None)
    monkeypatch.setattr(interrupts, "family", lambda: family)
    monkeypatch.setattr(interrupts, "recorder", lambda: recorder)
    monkeypatch.setattr(interrupts, "BEFORE_EXIT", [])
    monkeypatch.setattr(interrupts.os, "_exit", lambda code: open_at_exit.append(process.call.open))
    process.call.open = True
    process.interrupt.memory(process.call)
    leaves[0].join(10)
    assert (open_at_exit, process.call.open) == ([True], False)
