"""Remote control of lanes: what ``celery lanes set``, ``pause`` and ``resume`` tell workers.

Registered as :mod:`celery_budgets.worker.remote.commands` is; `celery control` has them too. Each
is judged in the worker, which alone knows what it serves and how large its pool is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from celery.worker.control import control_command, nok, ok

from celery_budgets.config.settings import settings_of
from celery_budgets.errors import ConfigurationError
from celery_budgets.model.lanes import Lane
from celery_budgets.worker.calls.roster import Roster, roster_of

__all__: list[str] = []

logger = logging.getLogger(__name__)


def _for_served_lane(command: Callable[..., str]) -> Callable[..., Any]:
    """Give *command* the roster and a lane of this worker; answer what it returns or refuses."""

    @wraps(command)
    def answered(state: Any, lane: str = "", **arguments: Any) -> Any:
        try:
            roster = roster_of(state.app)
            return ok(command(roster, _served(state.app, roster, lane), **arguments))
        except ConfigurationError as exc:
            return nok(str(exc))

    return answered


def _served(app: Any, roster: Roster, name: str) -> Lane:
    """Return the lane *name*, which this worker serves.

    Raises:
        ConfigurationError: There is no such lane, or another worker serves it.
    """
    lanes = settings_of(app).lanes
    lane = lanes[name]
    served = roster.consuming.lanes_of(lanes) if roster.consuming is not None else []
    if lane not in served:
        names = ", ".join(lane.name for lane in served) or "none"
        raise ConfigurationError(
            f"lane {name!r}: this worker does not serve it (its lanes: {names}); name one that does"
        )
    return lane


@control_command(args=[("lane", str), ("concurrency", int)], signature="<lane> <concurrency>")
@_for_served_lane
def lane_limit(roster: Roster, lane: Lane, concurrency: Any = None, **_: Any) -> str:
    """Tell worker(s) how many calls of a lane to run at once, until they end."""
    assert roster.limits is not None
    before = roster.limit_of(lane)
    roster.limits.set(lane, concurrency)
    return f"lane {lane.name}: concurrency {concurrency} instead of {before}"


@control_command(args=[("lane", str)], signature="<lane>")
@_for_served_lane
def pause_lane(roster: Roster, lane: Lane, **_: Any) -> str:
    """Tell worker(s) to start no further call of a lane until it is resumed."""
    assert roster.pauses is not None
    if roster.pauses.is_paused(lane):
        return f"lane {lane.name}: is paused already"
    roster.pauses.pause(lane)
    running = roster.active[lane.name]
    logger.warning("budgets.lane_paused lane=%s running=%s", lane.name, running)
    return f"lane {lane.name}: paused, {running} running"


@control_command(args=[("lane", str)], signature="<lane>")
@_for_served_lane
def resume_lane(roster: Roster, lane: Lane, **_: Any) -> str:
    """Tell worker(s) to go on with a lane that was paused."""
    assert roster.pauses is not None
    if not roster.pauses.is_paused(lane):
        return f"lane {lane.name}: is not paused"
    roster.pauses.resume(lane)
    logger.warning("budgets.lane_resumed lane=%s", lane.name)
    if roster.gate is not None and not roster.gate.is_open:
        return f"lane {lane.name}: resumed; it goes on when the memory gate opens"
    return f"lane {lane.name}: resumed"
