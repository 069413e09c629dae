"""The slots of this process, and with each of them the limits over the fleet that a block needs.

A block takes its slot first, and then all of its limits at once or none. Runs in the process of
the block.

See also: :mod:`celery_budgets.blocks.process_slots`, and
:mod:`celery_budgets.shared_state.limit_agent`, which asks for the limits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_budgets.blocks.process_slots import LOOK, ProcessSlots, Slot, process_slots
from celery_budgets.config.settings import Settings
from celery_budgets.errors import ConfigurationError, RejectedByBudget, Throttled, nearest
from celery_budgets.execution.call import SECONDS_TO_STOP
from celery_budgets.execution.limits.async_exception import shielded
from celery_budgets.model.limit import Demand, Limit
from celery_budgets.model.per_process import PerProcess
from celery_budgets.model.reasons import REASON_LIMIT, REASON_LIMIT_UNKNOWN, REASON_NESTED
from celery_budgets.shared_state.wish import Brake

if TYPE_CHECKING:
    from celery_budgets.shared_state.limit_agent import LimitAgent
    from celery_budgets.shared_state.wish import Wish

__all__ = ["Asked", "LimitedSlots", "slots_of"]

logger = logging.getLogger(__name__)


class Asked(NamedTuple):
    """The limits that a block names."""

    limits: tuple[str, ...] = ()
    #: The key by name of the limit, for those that have keys.
    keys: Mapping[str, Any] = {}

    def demands(self, lane: str, known: Mapping[str, Limit]) -> list[Demand]:
        """Return what the block needs of the limits of the app.

        Raises:
            ConfigurationError: A limit is not known, or a key is of none.
        """
        subject = f"budgets.call({lane!r})"
        problems = [
            f"{subject}: limit {name!r} is not known; {nearest(name, known)}"
            for name in self.limits
            if name not in known
        ]
        problems += [
            f"{subject}: limit_keys: {name!r} is no limit with keys of this block; "
            f"{nearest(name, [n for n in self.limits if n in known and known[n].key is not None])}"
            for name in self.keys
            if name not in self.limits or name not in known or known[name].key is None
        ]
        ConfigurationError.raise_if(problems)
        chosen = (known[name] for name in dict.fromkeys(self.limits))
        return [Demand(limit, self._key(lane, limit)) for limit in chosen]

    def _key(self, lane: str, limit: Limit) -> str:
        if limit.key is None:
            return ""
        if limit.name not in self.keys and limit.name not in _told:
            _told.add(limit.name)
            logger.warning(
                "budgets.limit_key_missing limit=%s lane=%s: blocks without a key share one; "
                "give limit_keys={%r: ...}", limit.name, lane, limit.name,
            )  # fmt: skip
        return str(self.keys.get(limit.name, ""))


class LimitedSlots:
    """Grants the slots of one process with the limits of one block.

    Args:
        slots: The slots.
        agent: Asks for the limits.
        demands: What the block needs of them.
    """

    def __init__(self, slots: ProcessSlots, agent: LimitAgent, demands: Sequence[Demand]) -> None:
        self._slots = slots
        self._agent = agent
        self._demands = demands
        self.limits, self.limit, self.active = slots.limits, slots.limit, slots.active
        #: The names of the limits, and for how long the block has waited for them, seconds.
        self.names, self.waited = tuple(demand.title for demand in demands), 0.0

    def reserve(self, slot: Slot, wait: float | None) -> None:
        """Acquire *slot* and the limits, blocking this thread until they are free.

        Args:
            slot: The slot; it has to be released even if this raises.
            wait: Longest wait, seconds; ``None``: without limit.

        Raises:
            RejectedByBudget: They were not free in time, or never will be.
        """
        until = monotonic() + (math.inf if wait is None else wait)
        self._slots.reserve(slot, wait)
        changed = threading.Event()
        wish = self._ask(slot, changed.set)
        while not wish.granted:
            left = until - monotonic()
            if left <= 0 and _is_answered(wish):
                raise _rejected(slot, wish)
            changed.wait(LOOK if left <= 0 else min(left, LOOK))
        self.waited = monotonic() - wish.began

    async def reserve_async(self, slot: Slot, wait: float | None) -> None:
        """Acquire *slot* and the limits like :meth:`reserve`, without blocking the event loop."""
        until = monotonic() + (math.inf if wait is None else wait)
        await self._slots.reserve_async(slot, wait)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        wish = self._ask(slot, partial(loop.call_soon_threadsafe, changed.set))
        while not wish.granted:
            left = until - monotonic()
            if left <= 0 and _is_answered(wish):
                raise _rejected(slot, wish)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK if left <= 0 else min(left, _LONGEST)):
                    await changed.wait()
            changed.clear()
        self.waited = monotonic() - wish.began

    def release(self, slot: Slot) -> None:
        """Release *slot* and the limits, or stop waiting for them; may be called repeatedly."""
        if slot.wish is not None:
            self._agent.release(slot.wish)
        slot.call = None
        self._slots.release(slot)

    def throttle(self, slot: Slot, throttled: Throttled) -> None:
        """Close a limit of the block, which ends by *throttled*, before its places are released."""
        for demand in self._demands:
            if demand.limit.name == throttled.limit and slot.wish is not None:
                key = None if throttled.all_keys else demand.key
                until = monotonic() + throttled.retry_after
                slot.wish.brakes.append(Brake(demand.limit.name, key, until))
                throttled.close()

    @shielded()  # what is asked for has to be known here, to be given back
    def _ask(self, slot: Slot, change: Any) -> Wish:
        for demand in self._demands:
            most = demand.limit.concurrency
            if most is not None and most - _held_around(slot, demand) < demand.weight:
                raise RejectedByBudget(REASON_NESTED, slot.lane)
        slot.wish = self._agent.ask(self._demands, partial(self._tell, slot, change))
        return slot.wish  # type: ignore[no-any-return]

    def _tell(self, slot: Slot, change: Any, wish: Wish) -> None:
        if wish.lost:
            _stop(slot.call)
            return
        try:
            change()
        except RuntimeError:
            self._agent.release(wish)  # its event loop is closed: nothing else would


#: Longest uninterrupted wait of a coroutine, seconds: any, but a number.
_LONGEST = 86400.0
#: The limits of which it was told that a key is missing.
_told: set[str] = set()


def slots_of(app: Any, settings: Settings, lane: str, asked: Asked) -> ProcessSlots | LimitedSlots:
    """Return the slots of this process for a block of *lane* that needs what it has *asked*.

    Raises:
        ConfigurationError: A limit is not known, or the app has no Redis to keep limits in.
    """
    slots = process_slots(app, settings.lanes)
    if not asked.limits and not asked.keys:
        return slots
    demands = asked.demands(lane, settings.limits)
    return LimitedSlots(slots, _agent_of(app), demands)


def _agent_of(app: Any) -> LimitAgent:
    from celery_budgets.shared_state.limits_of_app import new_agent

    agent = _agents.of(app)
    if not agent:
        with _lock:
            if not agent:
                agent.append(new_agent(app, lambda wish: wish.tell(wish)))
    return agent[0]


#: In a list: made when the first block with limits begins, which may fail.
_agents: PerProcess[list[LimitAgent]] = PerProcess(list)
_lock = threading.RLock()


def _is_answered(wish: Wish) -> bool:
    return wish.refused is not None or wish.unknown


def _rejected(slot: Slot, wish: Wish) -> RejectedByBudget:
    return RejectedByBudget(REASON_LIMIT_UNKNOWN if wish.unknown else REASON_LIMIT, slot.lane)


def _held_around(slot: Slot, demand: Demand) -> int:
    """Return how much of *demand* the enclosing blocks hold, which wait for this one."""
    held, outer = 0, slot.outer
    while outer is not None:
        for other in outer.wish.demands if outer.wish is not None else ():
            if other.limit.name == demand.limit.name and other.key == demand.key:
                held += other.weight
        outer = outer.outer
    return held


def _stop(call: Any) -> None:
    """Bring the limits of a block forward: others may run in its place already."""
    if call is not None:
        now = monotonic()
        call.bring_forward(soft_at=now, hard_at=now + SECONDS_TO_STOP)
