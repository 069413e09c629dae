"""``CallDemands``: what each call of a worker needs of limits over the fleet.

By its lane, by the limits that its task names, and by their keys.

Runs in the worker main process. See also:
:mod:`celery_budgets.model.demands`, and :mod:`celery_budgets.worker.limits.fleet_leases`, which
gets it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from celery_budgets.errors import words_of
from celery_budgets.model.demands import CallLimits
from celery_budgets.model.headers import HEADER_ASIDE, HEADER_WEIGHT
from celery_budgets.model.lane import Lane
from celery_budgets.model.limit import Demand, Limit
from celery_budgets.shared_state.scripts.asides import aside_name
from celery_budgets.shared_state.wish import Steps
from celery_budgets.tasks.task import BudgetedTask
from celery_budgets.worker.transport.aside_messages import pack

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["CallDemands", "Demands", "OwnDemands", "demands_of_lanes", "limits_named_by"]

logger = logging.getLogger(__name__)

#: Equal for calls that may take each other's places.
Demands: TypeAlias = tuple[Demand, ...]


class SharedDemands(tuple[Demand, ...]):
    """What many calls need, which take each other's places; it is looked up often."""

    def __hash__(self) -> int:
        found: int | None = vars(self).get("hash")
        if found is None:
            found = vars(self)["hash"] = super().__hash__()
        return found


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


class CallDemands:
    """Reads what calls need, once for those that all need the same.

    Args:
        lanes: What each call of a lane needs; lanes that are not limited are not in it.
        limits: The limits that tasks may name.
    """

    def __init__(self, lanes: Mapping[str, Demands], limits: Mapping[str, Limit]) -> None:
        self._lanes = lanes
        self._limits = limits
        #: What each call needs by lane and task, and what depends on the call itself.
        self._needed: dict[tuple[str, str, str], tuple[Demands, CallLimits | None]] = {}
        #: Tasks and limits of which it was told that a key is missing.
        self._keyless: set[tuple[str, str]] = set()

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
            demands = self._lanes.get(request.lane.name, ()) + limits.demands(
                request.args, request.kwargs, request.request_dict, partial(self._miss, request)
            )
            own = limits.keyed
            request.demands = OwnDemands.of(request, demands) if own else SharedDemands(demands)
        needed: Demands = request.demands
        return needed

    def _by_task(self, request: Delivery) -> tuple[Demands, CallLimits | None]:
        of_lane = self._lanes.get(request.lane.name, ())
        if not limits_named_by(request.task):
            return SharedDemands(of_lane), None
        mapped = getattr(request.task, "mapped", None)
        limits = CallLimits(mapped or request.task, self._limits, reads=mapped is None)
        plain = of_lane + (() if limits.keyed else limits.demands((), {}, {}))
        return SharedDemands(plain), limits

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
