"""``Wish``: what one call needs of limits over the fleet, from its asking to its end.

See also: :mod:`celery_budgets.shared_state.limit_agent`, which asks for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from math import inf
from socket import gethostname
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from celery_budgets.model.limit import Demand
from celery_budgets.shared_state.answers import Answer, Ask, Release

if TYPE_CHECKING:
    from celery_budgets.shared_state.limit_store import LimitStore

__all__ = ["Brake", "Steps", "Wish", "process_name"]

logger = logging.getLogger(__name__)


def process_name() -> str:
    """Return a new name of this process in Redis, by which an operator can tell where it is."""
    return f"{gethostname()}.{os.getpid()}.{uuid4().hex[:8]}".replace(":", ".")


class Brake(NamedTuple):
    """A limit that closes."""

    limit: str
    #: The only key for which it does; ``None``: for all.
    key: str | None
    #: Monotonic instant.
    until: float


class Steps(NamedTuple):
    """How a call is put aside, where the key of a limit is full."""

    #: The same for each delivery of one message.
    name: str
    #: Since when it waits aside, by the clock of Redis; 0: it has not yet.
    since: int
    #: Returns its message, given since when and for what it waits.
    pack: Callable[[int, Demand], bytes]


class Wish:
    """What one call needs, from the moment that it asks until it gives it back.

    Args:
        holder: Its name in Redis.
        demands: What it needs.
        tell: Called, in the agent's thread, at each change; must not block.
        steps: How it is put aside; ``None``: it is not.
    """

    __slots__ = (
        "asked", "began", "brakes", "counted_until", "demands", "due_at", "granted", "holder",
        "kept_until", "lost", "over", "passable_until", "passed_until", "refused", "settled",
        "since", "stepped", "steps", "tell", "unknown", "valid_until",
    )  # fmt: skip

    def __init__(
        self,
        holder: str,
        demands: Sequence[Demand],
        tell: Callable[[Wish], object],
        steps: Steps | None = None,
    ) -> None:
        self.holder = holder
        self.demands = demands
        self.tell = tell
        self.steps = steps
        #: Whether it was put aside; and whether its message is acknowledged since.
        self.stepped = self.settled = False
        #: Monotonic instant at which its call could start but for the limits, perhaps elsewhere.
        self.began = monotonic()
        #: Whether Redis may know of it.
        self.asked = False
        #: Whether the call may run.
        self.granted = False
        #: What it waits for; ``None`` before the first answer.
        self.refused: Demand | None = None
        #: Whether Redis did not answer when it was asked last.
        self.unknown = False
        #: Monotonic instant until which no others can have taken its places.
        self.valid_until = inf
        #: Monotonic instant until which its worker may pass its places on: while its lease is
        #: fresh, and from the first time on (0: not yet) for a moment.
        self.passable_until, self.passed_until = inf, 0.0
        #: Monotonic instant until which they are kept for a call that is about to arrive.
        self.kept_until = 0.0
        #: Monotonic instant until which Redis has counted how long its places are held; ``None``
        #: before it has any.
        self.counted_until: float | None = None
        #: Whether others have taken its places while its call ran.
        self.lost = False
        #: What its call has found closed; the limits are, before its places are given back.
        self.brakes: list[Brake] = []
        #: Whether it was given back.
        self.over = False
        #: Since when it waits, by the clock of Redis.
        self.since = steps.since if steps is not None else 0
        #: Monotonic instant at which it asks again.
        self.due_at = 0.0

    @property
    def name(self) -> str:
        """How it is named while it waits aside; empty if it does not."""
        return self.steps.name if self.steps is not None else ""

    def to_ask(self) -> Ask:
        """Return how it asks."""
        return Ask(self.holder, self.demands, self.since, self.name)

    def packed(self, answer: Answer) -> bytes | None:
        """Return its message; ``None`` where that cannot be kept, and it waits in its worker."""
        assert self.steps is not None
        assert answer.refused is not None
        try:
            return self.steps.pack(answer.since, answer.refused)
        except Exception:
            logger.exception("budgets.limits_failed holder=%s: it waits in its worker", self.holder)
            self.steps = None
            return None

    def refuse(self, answer: Answer) -> bool:
        """Take note of a refusal; return whether that is news."""
        news = self.refused is not answer.refused or self.unknown
        self.refused, self.since, self.unknown = answer.refused, answer.since, False
        return news

    def hold(self, since: float, length: float) -> None:
        """Take note of leases of that *length*, seconds, which the server began after *since*."""
        self.valid_until, self.passable_until = since + length, since + length / 2
        if self.counted_until is None:
            self.counted_until = since

    def to_release(self, now: float) -> Release:
        """Return how it is given back, or renewed: what a key has used counts by its time."""
        held = 0.0 if self.counted_until is None else now - self.counted_until
        return Release(self.holder, self.demands, "" if self.granted else self.name, held)

    def renewed(self, since: float, length: float, *, holds: bool) -> bool:
        """Take note of leases as :meth:`hold`; return whether others are found to have them now."""
        self.hold(since, length)
        self.counted_until = since
        if holds or self.over:
            return False
        self.lost = True
        names = ", ".join(demand.limit.name for demand in self.demands)
        logger.error(
            "budgets.lease_lost name=%s holder=%s: others have taken its places", names, self.holder
        )
        return True

    def say(self, tell: Callable[[Wish], object]) -> None:
        """Call *tell* with this wish; never raise."""
        try:
            tell(self)
        except Exception:
            logger.exception("budgets.limits_failed holder=%s", self.holder)

    def before_release(self, store: LimitStore, now: float) -> None:
        """Close what its call has found closed; forget it aside if its message goes elsewhere.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        for brake in self.brakes:
            if brake.until > now:
                store.throttle(brake.limit, brake.key, brake.until - now)
        if self.stepped and not self.settled:
            store.take_back(self.holder, self.demands, self.name)
