"""The remote control commands ``lanes_drain`` and ``lanes_forecast``, for ``celery lanes drain``.

Registered like :mod:`celery_budgets.worker.remote.commands`.

Runs in the worker main process.
"""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any

from celery.utils.serialization import strtobool
from celery.worker.control import control_command, inspect_command

from celery_budgets.worker.remote.commands import with_runtime

if TYPE_CHECKING:
    from celery_budgets.worker.runtime import WorkerRuntime

__all__: list[str] = []


@control_command(args=[("watched", strtobool)], signature="[watched=False]")
@with_runtime
def lanes_drain(runtime: WorkerRuntime, _state: Any, watched: bool = False, **_: Any) -> Any:
    """Tell worker(s) to take no more work, and to stop once what runs has ended."""
    runtime.leaving.begin(watched=watched)
    return {
        "running": [
            {
                "task_id": request.id,
                "task": request.name,
                "seconds": max(0.0, time() - (request.time_start or time())),
            }
            for request in runtime.leaving.running()
        ]
    }


@inspect_command()
@with_runtime
def lanes_forecast(runtime: WorkerRuntime, _state: Any, **_: Any) -> Any:
    """How long the running calls will take, by the run times of their tasks on this worker."""
    from celery_budgets.model.workers.drain import rest
    from celery_budgets.worker.pool.drain import history_of, running_call

    statistics = runtime.roster.tally.statistics()
    calls = []
    for request in list(runtime.roster.in_hand.values()):
        call = running_call(request, runtime.running_flight_of(request))
        history = history_of(statistics, request)
        calls.append({
            "task_id": request.id, "task": request.name, "lane": request.lane.name,
            "seconds": call.age, "may_run_again": call.may_run_again,
            "median": rest(call, history, 0.5), "p95": rest(call, history, 0.95),
            "at_most": max(0.0, call.hard_left),
        })  # fmt: skip
    return {
        "calls": calls,
        "lanes": {lane.name: lane.budget.hard_time_limit for lane in runtime.served},
    }
