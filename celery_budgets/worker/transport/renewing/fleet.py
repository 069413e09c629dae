"""Which workers of one Redis renew what they have in hand, and which do not.

Each that renews says so in Redis, again and again. Those that are there are known by Celery's
gossip. One that is there and does not say so is a plain worker, or one of an earlier version: it
relies on a visibility timeout that is above all that its calls take, so nobody may hand out its
calls after a shorter one.

See also: :mod:`celery_budgets.worker.transport.renewing.sweeping`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from time import time
from typing import Any

from celery_budgets.worker.transport.renewing.renewal import LONGEST_PERIOD

__all__ = ["Fleet", "renewing"]

logger = logging.getLogger(__name__)

#: Sorted set of the names of workers that renew, by the time at which they said so.
KEY = "celery-budgets:renewing"
#: Seconds after which a worker that says it no more counts as one that does not renew.
STALE = 3 * LONGEST_PERIOD
#: Seconds that a worker has, from its first heartbeat, to say that it renews.
PATIENCE = 5.0
#: Seconds after which a worker that listens has heard of all others: they tell of themselves
#: every 2 s, and have the above.
HEARD_AFTER = PATIENCE + 3.0
#: How long a worker is minded that was lost without a word: it may be alive, and busy. Seconds;
#: kombu.transport.redis.Channel.visibility_timeout.
MINDED = 3600.0


class Fleet:
    """Knows which other workers do not renew.

    Args:
        name: The name of this worker.
        clock: Returns the time in seconds, as other hosts have it too.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time) -> None:
        self._name = name
        self._clock = clock
        #: Other workers by the time at which they came, and those that were lost by when.
        self._there: dict[str, float] = {}
        self._gone: dict[str, float] = {}
        #: Those that have said since they came that they renew: once they die they say it no more,
        #: and what they had is to be handed out.
        self._renew: set[str] = set()
        #: Those that do not renew.
        self.others: tuple[str, ...] = ()
        #: Is it known who is there? Where nobody tells it, nothing is waited for.
        self.is_known = True
        self._heard_at = 0.0

    def listen(self, gossip: Any) -> None:
        """Hear from celery.worker.consumer.gossip.Gossip who comes and goes; once is enough."""
        if not gossip.enabled or self.join in gossip.on.node_join:
            return
        gossip.on.node_join.add(self.join)
        gossip.on.node_leave.add(self.leave)
        gossip.on.node_lost.add(self.lose)
        self.is_known, self._heard_at = False, self._clock() + HEARD_AFTER

    def join(self, worker: Any) -> None:
        """Note a worker that has come."""
        self._there[worker.hostname] = self._clock()
        self._gone.pop(worker.hostname, None)
        self._renew.discard(worker.hostname)

    def leave(self, worker: Any) -> None:
        """Note that a worker has left, and has given back what it had."""
        self._there.pop(worker.hostname, None)
        self._gone.pop(worker.hostname, None)

    def lose(self, worker: Any) -> None:
        """Note that a worker is not heard of any more."""
        if worker.hostname in self._there:
            self._gone.setdefault(worker.hostname, self._clock())

    def look(self, index: Any) -> None:
        """Say that this worker renews, and find out who else does not. In any thread."""
        now = self._clock()
        try:
            self._compare(self._said(index, now), now)
        finally:
            self.is_known = self.is_known or now >= self._heard_at

    def _said(self, index: Any, now: float) -> set[str]:
        key = index.prefix + KEY
        with index.client.pipeline(transaction=False) as pipe:
            pipe.zadd(key, {self._name: now})
            pipe.expire(key, int(2 * STALE))
            pipe.zremrangebyscore(key, "-inf", now - STALE)
            pipe.zrange(key, 0, -1)
            return {name.decode() for name in pipe.execute()[-1]}

    def _compare(self, renewing: Iterable[str], now: float) -> None:
        self._renew.update(renewing)
        for name, at in list(self._gone.items()):
            if now - at > MINDED:
                self._gone.pop(name, None)
                self._there.pop(name, None)
        others = tuple(
            sorted(
                name
                for name, since in list(self._there.items())
                if name not in self._renew and now - since > PATIENCE
            )
        )
        if others != self.others:
            self.others = others
            self._tell()

    def _tell(self) -> None:
        if self.others:
            logger.warning(
                "budgets.not_renewing workers=%s: they do not renew what they have in hand, so "
                "calls are handed out again only by them and by their visibility timeout, which "
                "must be above all that their calls take", ",".join(self.others),
            )  # fmt: skip
        else:
            logger.info("budgets.all_renew: every worker renews what it has in hand")


def renewing(index: Any) -> set[str]:
    """Return the names of the workers that have said lately that they renew."""
    since = time() - STALE
    return {name.decode() for name in index.client.zrangebyscore(index.prefix + KEY, since, "+inf")}
