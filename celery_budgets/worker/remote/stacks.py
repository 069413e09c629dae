"""The remote control commands ``lanes_stack`` and ``lanes_kills``, which ``celery lanes`` sends.

Registered like :mod:`celery_budgets.worker.remote.commands`.

Runs in the worker main process.
"""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any

from celery.worker.control import inspect_command

from celery_budgets.worker.remote.commands import with_runtime

if TYPE_CHECKING:
    from celery_budgets.worker.runtime import WorkerRuntime

__all__: list[str] = []

#: Most calls of one lane that are shown at once.
MOST_SHOWN = 100


@inspect_command(args=[("task_id", str), ("lane", str)], signature="[task_id] [lane]")
@with_runtime
def lanes_stack(
    runtime: WorkerRuntime, _state: Any, task_id: str = "", lane: str = "", **_: Any
) -> Any:
    """Where the body of a running call is, or those of a lane; they go on running."""
    from celery_budgets.model.kill import CallStack

    found = [
        request
        for request in list(runtime.roster.in_hand.values())
        if request.id == task_id or (not task_id and lane in ("", request.lane.name))
    ]
    return {
        "stacks": [
            CallStack(
                request.id, request.type, request.lane.name, request.hostname,
                max(0.0, time() - (request.time_start or time())), runtime.black_box.now(request),
            ).to_json()
            for request in found[:MOST_SHOWN]
        ],
        "count": len(found),
        "enabled": bool(runtime.settings.stacks),
    }  # fmt: skip


@inspect_command()
@with_runtime
def lanes_kills(runtime: WorkerRuntime, _state: Any, **_: Any) -> Any:
    """The calls that this worker has killed or lost in the last day, at most 1,000."""
    return {"kills": [kill.to_json() for kill in runtime.kills.lately()]}
