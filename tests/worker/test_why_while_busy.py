"""`budgets.why` while calls come and go: what it says with certainty was so at that time."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from tests.support.waiting import values_of

APP = "tests.worker.why_app"
SECONDS = 0.05
#: The instants of two processes, and of a call's body and its end in the worker.
TOLERANCE = 0.4


def is_true(why, asked, answered, began):
    """Whether it was so at some time between the question and the answer."""
    ended = began + SECONDS
    if why.cause == "ended":
        return ended <= answered + TOLERANCE
    if why.cause == "running":
        return began <= answered + TOLERANCE and ended >= asked - TOLERANCE
    return why.cause in ("at_broker", "lane", "global") and began >= asked - TOLERANCE


@pytest.mark.parametrize("prefetch", ["1", "8"])
@pytest.mark.slow
def test_it_is_never_wrong_with_certainty(broker_url, load_app, worker, prefetch):
    """And nearly always certain: two workers, calls in every state, asked at random."""
    module = load_app(APP)
    running = [
        worker(APP, "-Q", "steady", "--prefetch-multiplier", prefetch, "-P", pool)
        for pool in ("prefork", "threads")
    ]
    beats = [module.beat.delay(SECONDS) for _ in range(800)]
    chance, said = random.Random(18), []
    # On a slow machine none of the first may have left the broker.
    while len(said) < 25 or len(causes := {why.cause for _, why, *_ in said}) == 1:
        assert len(said) < 200, (causes, *(each.tail() for each in running))
        result, asked = chance.choice(beats), time.time()
        why = module.budgets.why(result.id, timeout=0.3)
        said.append((result, why, asked, time.time()))
    values_of(beats, timeout=120, detail=running[0].tail)
    causes = Counter(why.cause.value for _, why, *_ in said)
    assert len(causes) > 1, causes
    wrong = [
        (why, asked - result.get(), answered - result.get())
        for result, why, asked, answered in said
        if not is_true(why, asked, answered, result.get())
    ]
    assert not [each for each in wrong if each[0].certain], wrong
    assert len(wrong) <= 0.05 * len(said), wrong
