"""``PassingOn``: whether a place of limits goes from one call to the next one in this worker.

To the one that waits, or that arrives within 10 ms, when the call has succeeded: for 50 ms at most,
or after it was seen that nobody waits elsewhere, and in lanes of short calls alone, which would
wait longer for their places than they take. So who waits longest elsewhere waits that much longer,
and for the short call that began last. A rate counts each call, and a key has its order: their
places are not passed on.

Runs in the worker main process, as :mod:`celery_budgets.worker.limits.fleet_leases` does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from celery_budgets.worker.limits.call_demands import Demands, OwnDemands

if TYPE_CHECKING:
    from celery_budgets.shared_state.limit_agent import LimitAgent
    from celery_budgets.shared_state.wish import Wish

__all__ = ["PassingOn", "is_good"]

#: For how long a place goes from call to call in this worker before others may have it, seconds;
#: and after it was seen that nobody waits elsewhere.
PASSED_ON = 0.05
#: For how long at most it is kept in between for a call that is about to arrive; and the time
#: between two questions whether anybody waits elsewhere.
KEPT = 0.01


def is_good(wish: Wish) -> bool:
    """Return whether a call may start on *wish*: this process may have stood still since."""
    return wish.granted and not wish.lost and monotonic() < wish.valid_until


class PassingOn:
    """Keeps places for the next calls of this worker.

    Args:
        agent: Returns what asks for places.
        wake: Called, from any thread, when something that is kept may be of no use any more.
    """

    def __init__(self, agent: Callable[[], LimitAgent], wake: Callable[[], None]) -> None:
        self._agent = agent
        self._wake = wake
        #: Whether it will be looked at what is kept.
        self._looks = False
        #: Until when places are passed on because nobody waits elsewhere, and of which it is asked.
        self._alone: dict[Demands, float] = {}
        self._asking: set[Demands] = set()

    def keep(self, wish: Wish, demands: Demands) -> bool:
        """Return whether *wish* is kept for the next call with *demands* here."""
        if isinstance(demands, OwnDemands) or _is_rated(demands):
            return False
        now, alone = monotonic(), self._alone.get(demands, 0.0)
        wish.passed_until = max(wish.passed_until or now + PASSED_ON, alone)
        self._look_for_others(demands)
        fresh = now < min(wish.passed_until, wish.passable_until)
        if not fresh or wish.brakes or not is_good(wish):
            return False
        wish.began = now
        wish.kept_until = max(min(now + KEPT, wish.passed_until), alone)
        self.look_later()
        return True

    def look_later(self) -> None:
        """Have what is kept for the next call be given back in time, if there is none."""
        if not self._looks:
            self._looks = True
            self._agent().call_in(KEPT, self._look)

    def _look(self) -> None:
        self._looks = False
        self._wake()

    def _look_for_others(self, demands: Demands) -> None:
        """Find out whether anybody waits elsewhere, so that places can be passed on if not."""
        if demands not in self._asking:
            self._asking.add(demands)
            self._agent().call_in(KEPT, partial(self._ask_for_others, demands))

    def _ask_for_others(self, demands: Demands) -> None:
        from celery_budgets.shared_state.offers import others_wait  # which imports redis

        agent, began = self._agent(), monotonic()
        if agent.away is None and not others_wait(agent.store, agent.name, demands):
            self._alone[demands] = began + PASSED_ON
        self._asking.discard(demands)


def _is_rated(demands: Demands) -> bool:
    return any(demand.limit.rate is not None for demand in demands)
