"""``LimitStore``: takes, renews and gives back places of limits, in Redis.

A call takes all of its limits at once or none. A place is a lease: it ends by itself unless it is
renewed, by the clock of Redis.

Runs in each process that runs calls with limits. See also:
:mod:`celery_budgets.shared_state.limit_scripts`, and
:mod:`celery_budgets.shared_state.limit_agent`, which waits and renews.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import chain
from typing import Any, NamedTuple

from celery_budgets.model.limit import Demand
from celery_budgets.shared_state.limit_scripts import ACQUIRE, CLOCK, RELEASE, RENEW, THROTTLE

__all__ = ["CHANNELS", "OFFERED", "Answer", "LimitStore"]

#: How long a place stays free for the first in line, which has been told, seconds.
OFFERED = 1.0
#: One hash tag: a script changes the names of several limits at once.
_NAMES = "celery-budgets:{limits}:"
#: Before the name of a process: the channel on which it is told what it is offered.
CHANNELS = "celery-budgets:limits:"
_LONGEST_KEY = 200


class Answer(NamedTuple):
    """The answer to a holder that asks for its limits."""

    granted: bool
    #: The demand that is not granted.
    refused: Demand | None = None
    #: Seconds until its rate allows it; 0: it waits in line, and is told.
    wait: float = 0.0
    #: Since when it waits, by the clock of Redis; passed on when it asks again.
    since: int = 0
    #: Seconds until the first lease there ends, unless it is renewed.
    ends: float = 0.0


class LimitStore:
    """The places of limits on one server.

    Args:
        client: A client of the server.
        length: How long a place is held unless it is renewed, seconds.
        prefix: Put before each name.
        clock: The script that reads the time into ``now``.
    """

    def __init__(self, client: Any, *, length: float, prefix: str = "", clock: str = CLOCK) -> None:
        self.client = client
        self.length = length
        self.channels = prefix + CHANNELS
        self._prefix = prefix + _NAMES
        self._length = max(1, round(length * 1e6))
        self._acquire = client.register_script(clock + ACQUIRE)
        self._renew = client.register_script(clock + RENEW)
        self._release = client.register_script(clock + RELEASE)
        self._throttle = client.register_script(clock + THROTTLE)

    def acquire(self, holder: str, demands: Sequence[Demand], since: int = 0) -> Answer:
        """Take all of *demands*, or stand in line for the first that is full.

        Args:
            holder: ``process:number``, of one call; it may ask again.
            demands: What the call needs.
            since: Of the answer to it before; keeps its place in the order.

        Raises:
            redis.exceptions.RedisError: The server does not answer. It may have granted them; ask
                again, or release them.
        """
        granted, refused, wait, waits_since, ends = self._acquire(
            keys=[*self._names(demands)], args=self._arguments(holder, demands, since)
        )
        if granted:
            return Answer(granted=True)
        return Answer(False, demands[refused - 1], wait / 1e6, int(waits_since), ends / 1e6)

    def renew(self, held: Sequence[tuple[str, Sequence[Demand]]]) -> list[bool]:
        """Start the leases of all *held* anew; return of each holder whether it holds all of them.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        holders, names, arguments = [], [], []
        for holder, demands in held:
            for demand in demands:
                if demand.limit.concurrency is not None:
                    holders.append(holder)
                    names.append(self._name("held", demand))
                    arguments += [holder, demand.limit.concurrency, demand.weight]
        if not holders:
            return [True for _ in held]
        renewed = self._renew(keys=names, args=[self._length, *arguments])
        lost = {holder for holder, one in zip(holders, renewed, strict=True) if not one}
        return [holder not in lost for holder, _ in held]

    def release(self, holder: str, demands: Sequence[Demand]) -> None:
        """Give back what *holder* has, or end its wait; it may be done twice.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        self._release(keys=[*self._names(demands)], args=self._arguments(holder, demands, 0))

    def throttle(self, limit: str, key: str | None, seconds: float) -> None:
        """Close *limit* for *seconds*: for one *key* alone, or with ``None`` for all of them.

        After that one call tries it; the others start when that one has ended well.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        name = f"{self._prefix}brakes:{limit}" if key is None else self._of("brake", limit, key)
        self._throttle(keys=[name], args=[max(1, round(seconds * 1e6))])

    def _names(self, demands: Iterable[Demand]) -> Iterator[str]:
        for demand in demands:
            yield from (self._name(what, demand) for what in ("held", "line", "rate", "brake"))
            yield f"{self._prefix}brakes:{demand.limit.name}"

    def _name(self, what: str, demand: Demand) -> str:
        return self._of(what, demand.limit.name, demand.key)

    def _of(self, what: str, limit: str, key: str) -> str:
        if len(key) > _LONGEST_KEY or not key.isprintable():  # it may not even be UTF-8
            key = sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self._prefix}{what}:{limit}:{key}"

    def _arguments(self, holder: str, demands: Iterable[Demand], since: int) -> list[Any]:
        of_demands = chain.from_iterable(map(_numbers, demands))
        return [self._length, holder, round(OFFERED * 1e6), self.channels, since, *of_demands]


def _numbers(demand: Demand) -> tuple[Any, ...]:
    limit = demand.limit
    interval = limit.rate.interval * 1e6 if limit.rate is not None else 0
    return limit.concurrency or 0, demand.weight, interval, limit.burst
