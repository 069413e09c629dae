"""Places of limits over the fleet, for the calls that wait in this worker.

A call that waits has neither a slot nor a place. As many places are asked for as calls could start
here now; a place that no call can use any more, because its slot went to another, is given back.
The call that starts takes one along, and gives it back with its slot.

Runs in the worker main process, in any of its threads, under the lock of
:mod:`celery_budgets.worker.lanes.lane_slots`. See also:
:mod:`celery_budgets.shared_state.limit_agent`, which talks with Redis.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from celery_budgets.errors import words_of
from celery_budgets.model.demands import CallLimits
from celery_budgets.model.headers import HEADER_ASIDE, HEADER_WEIGHT
from celery_budgets.model.lane import Lane
from celery_budgets.model.limit import Demand, Limit
from celery_budgets.shared_state.scripts.asides import aside_name
from celery_budgets.shared_state.wish import Steps
from celery_budgets.tasks.task import BudgetedTask
from celery_budgets.telemetry.limit_counts import LimitCounts
from celery_budgets.worker.transport.aside_messages import pack

if TYPE_CHECKING:
    from celery_budgets.config.settings import Settings
    from celery_budgets.shared_state.answers import Aside
    from celery_budgets.shared_state.asides import Asides
    from celery_budgets.shared_state.limit_agent import LimitAgent
    from celery_budgets.shared_state.wish import Wish
    from celery_budgets.worker.delivery import Delivery

__all__ = ["Demands", "FleetLeases", "demands_of_lanes", "leases_of", "limits_named_by"]

logger = logging.getLogger(__name__)

#: Equal for calls that may take each other's places.
Demands: TypeAlias = tuple[Demand, ...]


class OwnDemands(tuple[Demand, ...]):
    """What one call alone needs, which is put aside where a key is full: equal to no other."""

    request: Delivery
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @classmethod
    def of(cls, request: Delivery, demands: Demands) -> OwnDemands:
        """Return *demands* as those of *request* alone."""
        own = cls(demands)
        vars(own)["request"] = request
        return own

    def steps(self) -> Steps:
        """Return how the call is put aside."""
        message, headers = self.request.message, self.request.request_dict
        since = headers.get(HEADER_ASIDE)
        return Steps(
            aside_name(*self.request.message_key),
            since if isinstance(since, int) and since > 0 else 0,
            partial(pack, message),
        )


def demands_of_lanes(
    lanes: Mapping[str, Lane], fleet_concurrency: int | None
) -> dict[str, Demands]:
    """Return what each call needs by its lane; without the lanes that are not limited."""
    everywhere = () if fleet_concurrency is None else (Demand(Limit("@fleet", fleet_concurrency)),)
    demands = {
        lane.name: ((Demand(Limit("@lane", lane.fleet), lane.name),) if lane.fleet else ())
        + everywhere
        for lane in lanes.values()
    }
    return {name: needed for name, needed in demands.items() if needed}


def limits_named_by(task: Any) -> tuple[str, ...]:
    """Return the limits that *task* names, or the task that it maps; none if it is a plain one."""
    task = getattr(task, "mapped", None) or task
    return tuple(task.limits) if isinstance(task, BudgetedTask) else ()


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
        #: What each call needs by lane and task, and what depends on the call itself.
        self._needed: dict[tuple[str, str, str], tuple[Demands, CallLimits | None]] = {}
        #: Tasks and limits of which it was told that a key is missing.
        self._keyless: set[tuple[str, str]] = set()
        #: What was asked for and no call has taken.
        self._wishes: dict[Demands, list[Wish]] = {}
        self._of: dict[Delivery, Wish] = {}
        #: For metrics.
        self.counts = LimitCounts()

    def of(self, request: Delivery) -> Demands:
        """Return what *request* needs; nothing if neither its lane nor its task is limited."""
        which = request.lane.name, request.task.name, request.type
        found = self._needed.get(which)
        if found is None:
            found = self._needed[which] = self._by_task(request)
        plain, limits = found
        if limits is None or not (limits.keyed or HEADER_WEIGHT in request.request_dict):
            return plain
        if request.demands is None:
            demands = self._demands.get(request.lane.name, ()) + limits.demands(
                request.args, request.kwargs, request.request_dict, partial(self._miss, request)
            )
            request.demands = OwnDemands.of(request, demands) if limits.keyed else demands
        needed: Demands = request.demands
        return needed

    def _by_task(self, request: Delivery) -> tuple[Demands, CallLimits | None]:
        of_lane = self._demands.get(request.lane.name, ())
        if not limits_named_by(request.task):
            return of_lane, None
        mapped = getattr(request.task, "mapped", None)
        limits = CallLimits(mapped or request.task, self._limits, reads=mapped is None)
        return of_lane + (() if limits.keyed else limits.demands((), {}, {})), limits

    def _miss(self, request: Delivery, limit: str, error: Exception | None) -> None:
        """Tell once, by task and limit, that calls without a key share one."""
        if (request.type, limit) in self._keyless:
            return
        self._keyless.add((request.type, limit))
        logger.warning(
            "budgets.limit_key_missing limit=%s task=%s task_id=%s: calls without a key share one; "
            "give limit_keys={%r: ...}%s", limit, request.type, request.id, limit,
            f" (its key raised {type(error).__name__}: {words_of(error)})" if error else "",
        )  # fmt: skip

    def of_lanes(self, lanes: Iterable[Lane]) -> dict[str, int | None]:
        """Return how many calls the limits of *lanes* allow, by the name of the limit."""
        demands = chain.from_iterable(self._demands.get(lane.name, ()) for lane in lanes)
        return {demand.title: demand.limit.concurrency for demand in demands}

    def allows(self, request: Delivery) -> bool:
        """Return whether there is a place for *request*."""
        demands = self.of(request)
        return not demands or any(map(_is_good, self._wishes.get(demands, ())))

    def bind(self, request: Delivery) -> None:
        """Have *request*, which is allowed, take its place along."""
        demands = self.of(request)
        if demands:
            wishes = self._wishes[demands]
            # Good a moment ago, when it was allowed; no longer so if the process stood still since.
            wish = next(filter(_is_good, wishes), None) or next(w for w in wishes if w.granted)
            wishes.remove(wish)
            self._of[request] = wish
            self.counts.took(_places(wish), monotonic() - wish.began)

    def free(self, request: Delivery) -> None:
        """Give back what *request* has."""
        wish = self._of.pop(request, None)
        if wish is not None:
            self.counts.gave_back(_places(wish))
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
                last = next((w for w in reversed(wishes) if not w.granted), wishes[-1])
                wishes.remove(last)
                self._agent.release(last)
            if not wishes:
                del self._wishes[demands]

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

    def refused(self, request: Delivery) -> tuple[str, bool] | None:
        """Return the limit that *request* waits for, and whether it is known; ``None`` if none."""
        demands = self.of(request)
        wish = next(iter(self._wishes.get(demands, ())), None)
        if wish is None or wish.granted or (wish.refused is None and not wish.unknown):
            return None
        demand = wish.refused if wish.refused is not None else demands[0]
        return demand.title, not wish.unknown

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


def _places(wish: Wish) -> list[tuple[str, int]]:
    return [(demand.title, demand.weight) for demand in wish.demands]
