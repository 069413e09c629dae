"""The remote control command ``lanes_why``, which ``celery lanes why`` and ``Budgets.why`` send.

Registered like :mod:`celery_budgets.worker.remote.commands`.

Runs in the worker main process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.worker.control import inspect_command

from celery_budgets.worker.remote.commands import with_runtime

if TYPE_CHECKING:
    from celery_budgets.worker.runtime import WorkerRuntime

__all__: list[str] = []


@inspect_command(args=[("task_id", str)], signature="<task_id>")
@with_runtime
def lanes_why(
    runtime: WorkerRuntime, state: Any, task_id: str = "", holders: Any = None, **_: Any
) -> Any:
    """Tell what this worker knows of one call, and the state of its lanes."""
    from celery_budgets.worker.remote.whereabouts import Whereabouts

    whereabouts = Whereabouts(runtime, state.consumer)
    if holders is not None:
        return {"holders": whereabouts.holders(*holders)}
    again, ended = runtime.roster.sent_again(task_id), runtime.roster.end_of(task_id)
    return {
        "in_hand": whereabouts.of(task_id),
        "ended": [ended[0].value, ended[1]] if ended is not None else None,
        "sent_again": list(again) if again is not None else None,
        "lanes": {lane.name: whereabouts.lane_now(lane) for lane in runtime.served},
        "queues": sorted(state.app.amqp.queues.consume_from),
    }
