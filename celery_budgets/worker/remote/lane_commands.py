"""Remote control commands for lanes, which ``celery lanes set``, ``pause`` and ``resume`` send.

Registered like :mod:`celery_budgets.worker.remote.commands`; available in `celery control`, too.
The worker validates them, since only it knows its lanes and the size of its pool. The modules of
the worker are imported when a command runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery.worker.control import control_command, nok, ok

from celery_budgets.errors import ConfigurationError
from celery_budgets.model.lanes import Lane

if TYPE_CHECKING:
    from celery_budgets.worker.runtime import WorkerRuntime

__all__: list[str] = []

logger = logging.getLogger(__name__)


def _for_served_lane(command: Callable[..., str]) -> Callable[..., Any]:
    """Wrap *command*: pass it the runtime and a lane, and reply its result or its refusal."""

    @wraps(command)
    def answered(state: Any, lane: str = "", **arguments: Any) -> Any:
        from celery_budgets.worker.runtime import runtime_of

        try:
            runtime = runtime_of(state.app)
            return ok(command(runtime, _served(runtime, lane), **arguments))
        except ConfigurationError as exc:
            return nok(str(exc))

    return answered


def _served(runtime: WorkerRuntime, name: str) -> Lane:
    """Return the lane *name* of this worker.

    Raises:
        ConfigurationError: There is no such lane, or this worker does not serve it.
    """
    lanes = runtime.settings.lanes
    lane = lanes[name]
    served = runtime.queue_pauses.lanes_of(lanes)
    if lane not in served:
        names = ", ".join(lane.name for lane in served) or "none"
        raise ConfigurationError(
            f"lane {name!r}: this worker does not serve it (its lanes: {names}); name one that does"
        )
    return lane


@control_command(args=[("lane", str), ("concurrency", int)], signature="<lane> <concurrency>")
@_for_served_lane
def lane_limit(runtime: WorkerRuntime, lane: Lane, concurrency: Any = None, **_: Any) -> str:
    """Tell worker(s) how many calls of a lane to run at once, until they restart."""
    before = runtime.slots.limit_of(lane)
    runtime.limits.set(lane, concurrency)
    return f"lane {lane.name}: concurrency {concurrency} instead of {before}"


@control_command(args=[("lane", str)], signature="<lane>")
@_for_served_lane
def pause_lane(runtime: WorkerRuntime, lane: Lane, **_: Any) -> str:
    """Tell worker(s) to start no new calls of a lane until it is resumed."""
    if runtime.pauses.is_paused(lane):
        return f"lane {lane.name}: is paused already"
    runtime.pauses.pause(lane)
    running = runtime.roster.active[lane.name]
    logger.warning("budgets.lane_paused lane=%s running=%s", lane.name, running)
    return f"lane {lane.name}: paused, {running} running"


@control_command(args=[("lane", str)], signature="<lane>")
@_for_served_lane
def resume_lane(runtime: WorkerRuntime, lane: Lane, **_: Any) -> str:
    """Tell worker(s) to resume a paused lane."""
    if not runtime.pauses.is_paused(lane):
        return f"lane {lane.name}: is not paused"
    runtime.pauses.resume(lane)
    logger.warning("budgets.lane_resumed lane=%s", lane.name)
    if not runtime.gate.is_open:
        return f"lane {lane.name}: resumed; it goes on when the memory gate opens"
    return f"lane {lane.name}: resumed"
