"""Places of limits over the fleet, for the calls that wait in this worker.

A call that waits has neither a slot nor a place. As many places are asked for as calls could start
here now; a place that no call can use any more, because its slot went to another, is given back.
The call that starts takes one along, and gives it back with its slot.

Or passes it on to the next call here: :mod:`celery_budgets.worker.limits.passing_on`.

A call that has no slot yet is put aside as well where the key of a limit is full, while a flood of
one key arrives, so that others do not stand behind it.

Runs in the worker main process, in any of its threads, under the lock of
:mod:`celery_budgets.worker.lanes.lane_slots`. See also:
:mod:`celery_budgets.shared_state.limit_agent`, which talks with Redis.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
from celery_budgets.worker.limits.passing_on import PassingOn, is_good

if TYPE_CHECKING:
    from celery_budgets.config.settings import Settings
    from celery_budgets.shared_state.answers import Aside
    from celery_budgets.shared_state.asides import Asides
    from celery_budgets.shared_state.limit_agent import LimitAgent
    from celery_budgets.shared_state.wish import Wish
    from celery_budgets.worker.delivery import Delivery

__all__ = ["FleetLeases", "leases_of"]


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
        self._passing_on = PassingOn(lambda: self._agent, wake)
        #: For metrics.
        self.counts = LimitCounts()

    def of_lanes(self, lanes: Iterable[Lane]) -> dict[str, int | None]:
        """Return how many calls the limits of *lanes* allow, by the name of the limit."""
        demands = chain.from_iterable(self._demands.get(lane.name, ()) for lane in lanes)
        return {demand.title: demand.limit.concurrency for demand in demands}

    def allows(self, request: Delivery) -> bool:
        """Return whether there is a place for *request*."""
        demands = self.of(request)
        return not demands or any(map(is_good, self._wishes.get(demands, ())))

    def allowed(self, requests: Iterable[Delivery]) -> Iterator[Delivery]:
        """Yield those of *requests* for which there is a place, in their order."""
        without: set[Demands] = set()
        for request in requests:
            demands = self.of(request)
            if demands not in without:
                if not demands or any(map(is_good, self._wishes.get(demands, ()))):
                    yield request
                else:
                    without.add(demands)

    def bind(self, request: Delivery) -> None:
        """Have *request*, which is allowed, take its place along."""
        demands = self.of(request)
        if demands:
            wishes = self._wishes[demands]
            # Good a moment ago, when it was allowed; no longer so if the process stood still since.
            wish = next(filter(is_good, wishes), None) or next(w for w in wishes if w.granted)
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
        demands = self.of(request)
        if passed_on and self._passing_on.keep(wish, demands):
            self._wishes.setdefault(demands, []).insert(0, wish)
        else:
            self._agent.release(wish)

    def fit(self, startable: Counter[Demands], beyond: Collection[Demands] = frozenset()) -> None:
        """Ask for as many places as calls could start now, and give back what is too much.

        Args:
            startable: What calls need that have a slot.
            beyond: What calls need that have none, and are put aside where a key is full.
        """
        for demands in [*self._wishes, *(d for d in startable if d not in self._wishes)]:
            wishes = self._wishes.setdefault(demands, [])
            waits = startable[demands] > 0 or demands in beyond
            for wish in [*wishes]:
                if wish.lost or not (wish.has_slot or wish.stepped or waits):
                    wishes.remove(wish)
                    self._agent.release(wish)
                elif wish.lacks_slot and startable[demands]:
                    wish.get_slot()
                    self._agent.ask_again(wish)
            while len(wishes) < startable[demands]:
                wishes.append(self._ask(demands))
            self._give_back(wishes, startable[demands])
            if not wishes:
                del self._wishes[demands]
        for demands in beyond:
            if isinstance(demands, OwnDemands) and demands not in self._wishes:
                self._wishes[demands] = [self._ask(demands, has_slot=False)]

    def _ask(self, demands: Demands, *, has_slot: bool = True) -> Wish:
        steps = demands.steps() if isinstance(demands, OwnDemands) else None
        return self._agent.ask(demands, self._tell, steps, has_slot=has_slot)

    def _give_back(self, wishes: list[Wish], most: int) -> None:
        """Give back those of equal *wishes* that are more than *most*."""
        while sum(wish.has_slot for wish in wishes) > most:
            # Who has waited longest keeps its turn.
            last = next((w for w in reversed(wishes) if _is_no_more(w)), None)
            kept = (w for w in wishes if w.granted and w.kept_until <= monotonic())
            last = last or next(kept, None)
            if last is None:
                self._passing_on.look_later()
                return
            wishes.remove(last)
            self._agent.release(last)

    def lacks_slot(self, request: Delivery) -> bool:
        """Return whether *request* was asked for without a slot, and is not to be put aside."""
        return any(wish.lacks_slot for wish in self._wishes.get(self.of(request), ()))

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
        if wish.granted or wish.stepped or wish.lacks_slot:
            self._wake()

    def _on_lost(self, wish: Wish) -> None:
        for request, held in list(self._of.items()):
            if held is wish:
                self._lose(request)
        self._wake()


def _is_no_more(wish: Wish) -> bool:
    """Return whether *wish* is not granted, nor is its call about to be put aside, in its turn."""
    return not wish.granted and (wish.steps is None or wish.answered)


def _places(wish: Wish) -> list[tuple[str, int]]:
    return [(demand.title, demand.weight) for demand in wish.demands]
