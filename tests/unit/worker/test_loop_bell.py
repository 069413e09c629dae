"""The bell of a worker's event loop, in the event loop of kombu."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from kombu.asynchronous import Hub

from celery_budgets.worker.bootsteps.loop_bell import LoopBell

#: For how long kombu's loop sleeps where it has no timer, seconds.
SLEEP = 1.0


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def bell(hub):
    """Its act notes when it was called, and at first adds what is to run at the next turn."""
    acts, added = [], []

    def act():
        acts.append(time.monotonic())
        if len(acts) == 1:
            hub.call_soon(lambda: added.append(time.monotonic()))
        made.stay_awake()

    made = LoopBell(SimpleNamespace(hub=hub, call_soon=hub.call_soon), act)
    made.acts, made.added = acts, added
    made.attach()
    yield made
    made.close()


def turn_for(hub, seconds):
    """Turn the loop; return how often."""
    began, loop, turns = time.monotonic(), hub.create_loop(), 0
    while time.monotonic() - began < seconds:
        next(loop)
        turns += 1
    return turns


def test_what_an_act_adds_runs_before_the_loop_sleeps(hub, bell):
    """Kombu sleeps first: what a turn adds would wait for an event, or for a second."""
    turn_for(hub, 1.5 * SLEEP)
    assert bell.added[0] - bell.acts[0] < SLEEP / 2


def test_a_loop_that_has_nothing_to_do_sleeps(hub, bell):
    """It does not turn for ever."""
    assert turn_for(hub, 1.5 * SLEEP) < 10


def test_without_an_event_loop_it_is_silent():
    """On gevent: its loop looks several times a second anyway."""
    bell = LoopBell(SimpleNamespace(hub=None, call_soon=None), lambda: None)
    bell.attach()
    bell.stay_awake()
