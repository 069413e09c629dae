"""By what a worker knows that a delivery in kombu's index is its own, and not handed out again.

kombu notes each delivery by the time. Here the part of that time which is below a millisecond is a
number that each connection of a worker has for itself, so the entry says who has written it, and
plain workers read a time like any other.

Runs in the worker main process.
"""

from __future__ import annotations

from math import floor
from random import randrange
from time import time

__all__ = ["ANYBODY", "HOLDERS", "PARTS", "Holder", "holder_of"]

#: The time in seconds up to 2106 has 32 bits; 53 are exact.
PARTS = 2**21
_STEPS = 2**10
HOLDERS = PARTS // _STEPS
#: Whoever holds them: tags are settled unseen.
ANYBODY = -1


class Holder:
    """One worker, by its number; two of some thousand have the same one."""

    def __init__(self) -> None:
        self.number = randrange(HOLDERS)

    def time(self) -> float:
        """Return the time as this worker notes deliveries, seconds."""
        return floor(time() * _STEPS) / _STEPS + self.number / PARTS


def holder_of(noted: float) -> int:
    """Return the number of the worker that has noted a delivery by that time."""
    return int(noted * PARTS) % HOLDERS
