"""Deliveries that are kept in a worker: by reason, by lane, and from several threads."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from celery_budgets import Lane
from celery_budgets.worker.lanes.held_deliveries import HeldDeliveries

ONE, TWO = Lane("one"), Lane("two")


def call(lane):
    return SimpleNamespace(lane=lane, hand_back=None)


def test_they_are_taken_by_reason_and_lane():
    """In the order in which they came; the others stay."""
    held = HeldDeliveries()
    first, other, last, paused = call(ONE), call(TWO), call(ONE), call(ONE)
    for request in (first, other, last):
        held.hold("memory", request)
    held.hold("operator", paused)
    assert len(held) == 4
    assert held.take("memory", ONE) == [first, last]
    assert held.take_first("memory") is other
    assert held.take_first("memory") is None
    assert held.take("operator") == [paused]
    assert len(held) == 0


def test_a_lost_connection_takes_all():
    """Their messages come again, by the next channel."""
    held = HeldDeliveries()
    held.hold("memory", call(ONE))
    held.lose_connection()
    assert (len(held), held.take("memory")) == (0, [])


def test_one_that_is_held_meanwhile_is_not_lost():
    """Threads of the pool hold some while those of a lane are taken."""
    held, taken, many = HeldDeliveries(), [], 2_000

    def hold():
        for number in range(many):
            held.hold("memory", call(ONE if number % 2 else TWO))

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken += held.take("memory", ONE)
    taken += held.take("memory")
    assert len(taken) == 3 * many
