"""``LimitAgent``: asks for the limits of the calls of this process, waits, renews and gives back.

All talk with Redis is that of two threads: neither an event loop nor a body ever waits for it
here. One asks and renews, the other hears what this process is offered.

While Redis does not answer, what is granted goes on to its end, and new calls wait, or run after
one lease where their limits say so (``on_outage="run"``). Who has lost its places, because the
process stood still for longer than a lease and others have taken them, is told.

Runs in each process that runs calls with limits. See also:
:mod:`celery_budgets.shared_state.limit_store`, the places in Redis.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from math import inf
from time import monotonic
from typing import Any

from redis.exceptions import RedisError

from celery_budgets.model.limit import Demand, Limit
from celery_budgets.shared_state.answers import Answer
from celery_budgets.shared_state.asides import Asides, put_aside
from celery_budgets.shared_state.limit_store import LimitStore
from celery_budgets.shared_state.offers import Offers
from celery_budgets.shared_state.system_thread import Alarms, Bell, SystemThread
from celery_budgets.shared_state.wish import Steps, Wish, process_name

__all__ = ["LimitAgent"]

logger = logging.getLogger(__name__)

#: Share of a lease's length after which it is renewed.
RENEWED_AFTER = 1 / 3
#: Seconds between two attempts while Redis does not answer.
AGAIN = 1.0
#: Seconds after which who waits asks again at the latest: a message may be lost, a limit changed.
ASKS_AGAIN = 5.0
#: How long after the end of a lease it is looked again, seconds.
LATE = 0.01
#: Longest sleep, seconds: the machine may have been suspended.
LONGEST = 1.0
#: Most wishes in one round trip.
MOST_AT_ONCE = 50
#: What a wish is there for.
ASK, GIVE_BACK = True, False


class LimitAgent:
    """Holds the calls of one process to limits.

    Args:
        store: The places, with a client of the agent's own.
        listen: The same, for what this process is offered.
        on_lost: Called, in the agent's thread, with a wish whose places others have taken.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        store: LimitStore,
        listen: LimitStore,
        on_lost: Callable[[Wish], object] = lambda wish: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.name = process_name()
        #: Used in the thread of the agent alone.
        self.store = store
        self._on_lost = on_lost
        self._clock = clock
        self._numbers = itertools.count(1)
        self._bell = Bell()
        #: Who is to ask, or to give back, in this order; others only append.
        self._todo: deque[tuple[Wish, bool]] = deque()
        self._told: deque[str | None] = deque()
        self._alarms = Alarms(clock)
        self._waiting: dict[str, Wish] = {}
        self._held: dict[str, Wish] = {}
        self._renew_at = 0.0
        #: Since when Redis does not answer, and when it is asked again.
        self._away_since: float | None = None
        self._again_at = 0.0
        #: Until then nothing is asked for: others renew first what they have.
        self._asks_at = 0.0
        #: What sends back who waits aside; ``None`` if this process does not.
        self._asides: Asides | None = None
        self._offers = Offers(listen, self.name, self._hear, clock)
        self._thread: SystemThread | None = None

    def ask(
        self, demands: Sequence[Demand], tell: Callable[[Wish], object], steps: Steps | None = None
    ) -> Wish:
        """Ask for *demands*; *tell* is called when they are granted or refused, or put aside."""
        wish = Wish(f"{self.name}:{next(self._numbers)}", demands, tell, steps)
        self._todo.append((wish, ASK))
        self._start()
        self._bell.ring()
        return wish

    def send_back(self, limits: Mapping[str, Limit], send: Callable[[Any], object]) -> Asides:
        """Have this process send back what was put aside; for arguments see :class:`Asides`."""
        self._asides = Asides(self.store, limits, send, self._bell.ring, self._clock)
        self._start()
        return self._asides

    def call_in(self, seconds: float, act: Callable[[], object]) -> None:
        """Have *act* called in the agent's thread; must not block, nor raise."""
        self._alarms.add(seconds, act)
        self._bell.ring()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = SystemThread(self._run)
            self._thread.start()
            self._offers.start()

    def release(self, wish: Wish) -> None:
        """Give back what *wish* has, or stop waiting; may be called repeatedly."""
        if not wish.over:
            # In this order: an interrupt in between leads to a second release.
            self._todo.append((wish, GIVE_BACK))
            wish.over = True
            self._bell.ring()

    def stop(self) -> None:
        """Give back everything, and end the threads."""
        if self._thread is not None:
            self._offers.stop()
            self._thread.stop()
            self._bell.ring()
            self._thread.join(AGAIN)
            self._offers.join()

    def _hear(self, holder: str | None) -> None:
        """Note that *holder* is offered a place; ``None``: messages may have been lost."""
        self._told.append(holder)
        self._bell.ring()

    def _run(self, thread: SystemThread) -> None:
        while not thread.wait(0):
            try:
                delay = self.tick()
            except Exception:
                logger.exception("budgets.limits_failed: looked at again in %s s", AGAIN)
                delay = AGAIN
            self._bell.wait(min(delay, LONGEST))
        for wish in [*self._held.values(), *self._waiting.values()]:
            self.release(wish)
        self.tick()

    def tick(self) -> float:
        """Do what is due; return the seconds until the next."""
        return min(self._alarms.ring(), self._tick())

    def _tick(self) -> float:
        if self._away_since is None or self._clock() >= self._again_at:
            try:
                if self._away_since is not None:
                    self._come_back()
                self._work()
            except RedisError as exc:
                self._stay_away(exc)
        if self._away_since is not None:
            self._without_redis()
            return max(0.0, self._again_at - self._clock())
        renew_at = [self._renew_at] if self._held else []
        due = [*(wish.due_at for wish in self._waiting.values()), *renew_at]
        if self._asides is not None:
            due.append(self._asides.look_at)
        return max(0.0, min(due, default=inf) - self._clock())

    def _work(self) -> None:
        if self._held and self._clock() >= self._renew_at:
            self._renew()
        while self._todo:
            some = [*islice(self._todo, MOST_AT_ONCE)]
            asking = [wish for wish, asks in some if asks]
            self._exchange([wish for wish, asks in some if not asks], asking)
            for _ in some:
                self._todo.popleft()
        told = {self._told.popleft() for _ in range(len(self._told))}
        self._exchange(
            [],
            [
                wish for wish in self._waiting.values()
                if None in told or wish.holder in told or wish.due_at <= self._clock()
            ],
        )  # fmt: skip
        if self._asides is not None:
            self._asides.work()

    def _exchange(self, releases: list[Wish], asks: list[Wish]) -> None:
        """Give back and ask, in one round trip: what is given back is there for who asks."""
        asked_at = self._clock()
        # Where one has given up, its release comes next, and ends its wait in Redis too.
        asks = [wish for wish in asks if not wish.over]
        for wish in releases:
            wish.before_release(self.store, self._clock())
        if asked_at < self._asks_at:
            for wish in asks:
                self._waiting[wish.holder], wish.due_at = wish, self._asks_at
            asks = []
        for wish in asks:
            wish.asked = True
        answers = self.store.exchange(
            [wish.to_release(asked_at) for wish in releases if wish.asked],
            [wish.to_ask() for wish in asks],
        )
        for wish in releases:
            self._waiting.pop(wish.holder, None)
            self._held.pop(wish.holder, None)
        self._heed([*zip(asks, answers, strict=True)], asked_at)

    def _heed(self, answered: list[tuple[Wish, Answer]], asked_at: float) -> None:
        for wish, answer in answered:
            if answer.granted:
                if not self._held:
                    self._renew_at = asked_at + self.store.length * RENEWED_AFTER
                self._held[wish.holder] = wish
                wish.hold(asked_at, self.store.length)
                wish.began = min(wish.began, asked_at - answer.waited)
                self._grant(wish)
            elif not answer.aside:
                self._refuse(wish, answer)
        if aside := [both for both in answered if both[1].aside]:
            self._step_aside(aside)

    def _step_aside(self, both: list[tuple[Wish, Answer]]) -> None:
        stay = put_aside(self.store, both)
        for wish, _ in both:
            if wish.stepped:
                self._waiting.pop(wish.holder, None)
                wish.say(wish.tell)
        if self._asides is not None:
            self._asides.look_soon()  # sooner than was planned, perhaps
        self._exchange([], stay)

    def _grant(self, wish: Wish) -> None:
        self._waiting.pop(wish.holder, None)
        wish.granted, wish.unknown, wish.refused = True, False, None
        wish.say(wish.tell)

    def _refuse(self, wish: Wish, answer: Answer) -> None:
        self._waiting[wish.holder] = wish
        # Nobody tells that a lease has ended.
        wish.due_at = self._clock() + min(answer.wait or answer.ends + LATE, ASKS_AGAIN)
        if wish.refuse(answer):
            wish.say(wish.tell)

    def _renew(self) -> None:
        held = [wish for wish in self._held.values() if not wish.lost]
        began = self._clock()
        kept = self.store.renew([wish.to_release(began) for wish in held])
        self._renew_at = self._clock() + self.store.length * RENEWED_AFTER
        for wish, holds in zip(held, kept, strict=True):
            if wish.renewed(began, self.store.length, holds=holds):
                wish.say(self._on_lost)

    def _stay_away(self, error: RedisError) -> None:
        self._again_at = self._clock() + AGAIN
        self._renew_at = 0.0  # first of all when it is back
        if self._away_since is None:
            self._away_since = self._clock()
            logger.warning("budgets.limits_unknown: new calls with limits wait: %s", error)

    def _come_back(self) -> None:
        self.store.client.ping()
        self._away_since = None
        self._asks_at = self._clock() + 2 * AGAIN
        logger.warning("budgets.limits_known")

    def _without_redis(self) -> None:
        """Tell those who ask that nobody knows, or let them run where their limits say so."""
        assert self._away_since is not None
        long = self._clock() - self._away_since > self.store.length
        for _ in range(len(self._todo)):
            wish, asks = self._todo.popleft()
            if wish.asked or not wish.over:  # else Redis never hears of it
                self._todo.append((wish, asks))
        asking = [wish for wish, asks in list(self._todo) if asks]
        for wish in [*self._waiting.values(), *asking]:
            if wish.over or wish.granted:
                continue
            if long and all(demand.limit.on_outage == "run" for demand in wish.demands):
                self._grant(wish)
            elif not wish.unknown:
                wish.unknown = True
                wish.say(wish.tell)

    @property
    def away(self) -> float | None:
        """For how long Redis has not answered, seconds; ``None`` if it did last."""
        since = self._away_since or self._offers.away_since
        return None if since is None else self._clock() - since
