"""Places of limits over the fleet, for the calls that wait in this worker.

A call that waits has neither a slot nor a place. As many places are asked for as calls could start
here now; a place that no call can use any more, because its slot went to another, is given back.
The call that starts takes one along, and gives it back with its slot.

Or passes it on, when it has succeeded, to the next call here, which waits or arrives within 10 ms:
for 50 ms at most, or after it was seen that nobody waits elsewhere, and in lanes of short calls
alone, which would wait longer for their places than they take. So who waits longest elsewhere waits
that much longer, and for the short call that began last. A rate counts each call, and a key has its
order: their places are not passed on.

Runs in the worker main process, in any of its threads, under the lock of
:mod:`celery_budgets.worker.lanes.lane_slots`. See also:
:mod:`celery_budgets.shared_state.limit_agent`, which talks with Redis.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from celery_budgets.model.lane import Lane
from celery_budgets.model.limit import Limit
from celery_budgets.telemetry.limit_counts import LimitCounts
from celery_budgets.worker.limits.call_demands import (
    CallDemands,
    Demands,
    OwnDemands,
    demands_of_lanes,
    limits_named_by,
)

if TYPE_CHECKING:
    from celery_budgets.config.settings import Settings
    from celery_budgets.shared_state.answers import Aside
    from celery_budgets.shared_state.asides import Asides
    from celery_budgets.shared_state.limit_agent import LimitAgent
    from celery_budgets.shared_state.wish import Wish
    from celery_budgets.worker.delivery import Delivery

__all__ = ["FleetLeases", "leases_of"]

#: For how long a place goes from call to call in this worker before others may have it, seconds;
#: and after it was seen that nobody waits elsewhere.
PASSED_ON = 0.05
#: For how long at most it is kept in between for a call that is about to arrive; and the time
#: between two questions whether anybody waits elsewhere.
KEPT = 0.01


def leases_of(
    app: Any,
    settings: Settings,
    wake: Callable[[], None],
    lose: Callable[[Delivery], object],
) -> FleetLeases | None:
    """Return the leases of a worker of *app*; ``None`` if none of its lanes is limited.

    For arguments see :class:`FleetLeases`.
    """
    demands = demands_of_lanes(settings.lanes, settings.fleet_concurrency)
    if not demands and not any(map(limits_named_by, app.tasks.values())):
        return None
    from celery_budgets.shared_state.limits_of_app import new_agent

    return FleetLeases(demands, partial(new_agent, app), wake, lose, settings.limits)


class FleetLeases:
    """Asks for places, binds them to calls, and gives them back.

    Args:
        demands: What each call of a lane needs; lanes that are not limited are not in it.
        agent: Returns what asks for places; called at the first.
        wake: Called, from any thread, when a call may start.
        lose: Called, from any thread, with a call whose places others have taken.
        limits: The limits that tasks may name.
    """

    def __init__(
        self,
        demands: Mapping[str, Demands],
        agent: Callable[[Callable[[Wish], object]], LimitAgent],
        wake: Callable[[], None],
        lose: Callable[[Delivery], object] = lambda request: None,
        limits: Mapping[str, Limit] = MappingProxyType({}),
    ) -> None:
        self._demands = demands
        self._make = agent
        self._made: LimitAgent | None = None
        self._asides: Asides | None = None
        self._wake = wake
        self._lose = lose
        self._limits = limits
        #: What each call needs.
        self.of = CallDemands(demands, limits).of
        #: What was asked for and no call has taken.
        self._wishes: dict[Demands, list[Wish]] = {}
        self._of: dict[Delivery, Wish] = {}
        #: Whether it will be looked at what is kept for the next call.
        self._looks = False
        #: Until when places are passed on because nobody waits elsewhere, and of which it is asked.
        self._alone: dict[Demands, float] = {}
        self._asking: set[Demands] = set()
        #: For metrics.
        self.counts = LimitCounts()

    def of_lanes(self, lanes: Iterable[Lane]) -> dict[str, int | None]:
        """Return how many calls the limits of *lanes* allow, by the name of the limit."""
        demands = chain.from_iterable(self._demands.get(lane.name, ()) for lane in lanes)
        return {demand.title: demand.limit.concurrency for demand in demands}

    def allows(self, request: Delivery) -> bool:
        """Return whether there is a place for *request*."""
        demands = self.of(request)
        return not demands or any(map(_is_good, self._wishes.get(demands, ())))

    def allowed(self, requests: Iterable[Delivery]) -> Iterator[Delivery]:
        """Yield those of *requests* for which there is a place, in their order."""
        without: set[Demands] = set()
        for request in requests:
            demands = self.of(request)
            if demands not in without:
                if not demands or any(map(_is_good, self._wishes.get(demands, ()))):
                    yield request
                else:
                    without.add(demands)

    def bind(self, request: Delivery) -> None:
        """Have *request*, which is allowed, take its place along."""
        demands = self.of(request)
        if demands:
            wishes = self._wishes[demands]
            # Good a moment ago, when it was allowed; no longer so if the process stood still since.
            wish = next(filter(_is_good, wishes), None) or next(w for w in wishes if w.granted)
            wishes.remove(wish)
            self._of[request] = wish
            request.limit_wait = monotonic() - wish.began
            self.counts.took(_places(wish), request.limit_wait)

    def told(self, request: Delivery) -> tuple[tuple[str, ...], float]:
        """Return the names of the limits of *request*, and how long it has waited for them."""
        return tuple(demand.title for demand in self.of(request)), request.limit_wait

    def free(self, request: Delivery, *, passed_on: bool = False) -> None:
        """Give back what *request* has; with *passed_on* the next call here may have it first."""
        wish = self._of.pop(request, None)
        if wish is None:
            return
        self.counts.gave_back(_places(wish))
        now, demands = monotonic(), self.of(request)
        alone = self._alone.get(demands, 0.0)
        wish.passed_until = max(wish.passed_until or now + PASSED_ON, alone)
        passed_on = passed_on and not isinstance(demands, OwnDemands) and not _is_rated(demands)
        if passed_on:
            self._look_for_others(demands)
        if passed_on and _may_be_passed_on(wish):
            wish.began = now
            wish.kept_until = max(min(now + KEPT, wish.passed_until), alone)
            self._wishes.setdefault(demands, []).insert(0, wish)
            self._look_later()
        else:
            self._agent.release(wish)

    def fit(self, startable: Counter[Demands]) -> None:
        """Ask for as many places as calls could start now, and give back what is too much."""
        for demands in [*self._wishes, *(d for d in startable if d not in self._wishes)]:
            wishes = self._wishes.setdefault(demands, [])
            for lost in [wish for wish in wishes if wish.lost]:
                wishes.remove(lost)
                self._agent.release(lost)
            while len(wishes) < startable[demands]:
                steps = demands.steps() if isinstance(demands, OwnDemands) else None
                wishes.append(self._agent.ask(demands, self._tell, steps))
            while len(wishes) > startable[demands]:
                # Who has waited longest keeps its turn.
                last = next((w for w in reversed(wishes) if not w.granted), None)
                last = last or next((w for w in wishes if w.kept_until <= monotonic()), None)
                if last is None:
                    self._look_later()
                    break
                wishes.remove(last)
                self._agent.release(last)
            if not wishes:
                del self._wishes[demands]

    def _look_later(self) -> None:
        """Have what is kept for the next call be given back in time, if there is none."""
        if not self._looks:
            self._looks = True
            self._agent.call_in(KEPT, self._look)

    def _look_for_others(self, demands: Demands) -> None:
        """Find out whether anybody waits elsewhere, so that places can be passed on if not."""
        if demands not in self._asking:
            self._asking.add(demands)
            self._agent.call_in(KEPT, partial(self._ask_for_others, demands))

    def _ask_for_others(self, demands: Demands) -> None:
        from celery_budgets.shared_state.offers import others_wait  # which imports redis

        agent, began = self._agent, monotonic()
        if agent.away is None and not others_wait(agent.store, agent.name, demands):
            self._alone[demands] = began + PASSED_ON
        self._asking.discard(demands)

    def _look(self) -> None:
        self._looks = False
        self._wake()

    def stepped_aside(self) -> list[Delivery]:
        """Return the calls that were put aside since: whose messages are to be acknowledged."""
        stepped = []
        for demands, wishes in list(self._wishes.items()):
            if isinstance(demands, OwnDemands) and any(wish.stepped for wish in wishes):
                for wish in wishes:
                    wish.settled = True
                del self._wishes[demands]
                stepped.append(demands.request)
        return stepped

    def start(self, send: Callable[[list[Aside]], object]) -> None:
        """Have calls that wait aside sent back, if tasks name limits with keys.

        Args:
            send: Called, from any thread, with messages that are to be sent; then :meth:`sent` is.
        """
        if self._asides is None and any(one.key is not None for one in self._limits.values()):
            self._asides = self._agent.send_back(self._limits, send)

    def sent(self, asides: list[Aside]) -> None:
        """Note that *asides* are in their queues."""
        if self._asides is not None:
            self._asides.sent(asides)

    def leave_asides(self) -> None:
        """Leave it to others to send back what waits aside: nothing is sent from here any more."""
        if self._asides is not None:
            self._asides.end()

    def refused(self, request: Delivery) -> tuple[str, bool] | None:
        """Return the limit that *request* waits for, and whether it is known; ``None`` if none."""
        demands = self.of(request)
        wish = next(iter(self._wishes.get(demands, ())), None)
        if wish is None or wish.granted or (wish.refused is None and not wish.unknown):
            return None
        demand = wish.refused if wish.refused is not None else demands[0]
        return demand.title, not wish.unknown

    @property
    def away(self) -> float | None:
        """For how long the Redis of the limits has not answered, seconds; ``None`` if it does."""
        return None if self._made is None else self._made.away

    def stop(self) -> None:
        """Give everything back, once the pool has stopped."""
        if self._made is not None:
            self._made.stop()

    @property
    def _agent(self) -> LimitAgent:
        if self._made is None:
            self._made = self._make(self._on_lost)
        return self._made

    def _tell(self, wish: Wish) -> None:
        if wish.granted or wish.stepped:
            self._wake()

    def _on_lost(self, wish: Wish) -> None:
        for request, held in list(self._of.items()):
            if held is wish:
                self._lose(request)
        self._wake()


def _is_good(wish: Wish) -> bool:
    """Return whether a call may start on it: this process may have stood still since."""
    return wish.granted and not wish.lost and monotonic() < wish.valid_until


def _may_be_passed_on(wish: Wish) -> bool:
    """Return whether the next call here may have the places of *wish* without asking Redis."""
    now = monotonic()
    fresh = now < min(wish.passed_until, wish.passable_until)
    return fresh and not wish.brakes and _is_good(wish)


def _is_rated(demands: Demands) -> bool:
    return any(demand.limit.rate is not None for demand in demands)


def _places(wish: Wish) -> list[tuple[str, int]]:
    return [(demand.title, demand.weight) for demand in wish.demands]
