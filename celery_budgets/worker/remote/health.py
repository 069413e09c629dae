"""The remote control command ``lanes_health``, which ``celery lanes health`` sends.

Registered like :mod:`celery_budgets.worker.remote.commands`.

Runs in the worker main process.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from celery.utils.nodenames import gethostname
from celery.worker import state as worker_state
from celery.worker.control import inspect_command

from celery_budgets.worker.remote.commands import with_runtime

if TYPE_CHECKING:
    from celery_budgets.model.lanes import Lane
    from celery_budgets.worker.runtime import WorkerRuntime

__all__: list[str] = []


@inspect_command()
@with_runtime
def lanes_health(runtime: WorkerRuntime, state: Any, **_: Any) -> Any:
    """Whether this worker consumes the queues of its lanes, and its processes are up."""
    processes = runtime.processes
    if processes is not None:
        processes.look()
    waiting = _waiting(state.consumer)
    return {
        "host": gethostname(),
        "pid": os.getpid(),
        "lanes": {
            lane.name: _of_lane(runtime, state.consumer, lane) | {"waiting": waiting[lane.name]}
            for lane in runtime.served
        },
        "processes": processes.to_json() if processes is not None else None,
        "gate": "open" if runtime.gate.is_open else "closed",
    }


def _of_lane(runtime: WorkerRuntime, consumer: Any, lane: Lane) -> dict[str, Any]:
    tasks = consumer.task_consumer
    starts, last = runtime.flow.starts(lane.name)
    return {
        "queue": lane.queue,
        # Not what it should consume: a consumer may have been lost on the way.
        "consumes": tasks is not None and bool(tasks.consuming_from(lane.queue)),
        "paused": sorted(runtime.queue_pauses.paused.get(lane.queue, ())),
        "active": runtime.roster.active[lane.name],
        "limit": runtime.slots.limit_of(lane),
        "free": runtime.slots.has_room(lane.name),
        "starts": starts,
        "last_start": last,
    }


def _waiting(consumer: Any) -> Counter[str]:
    """Return the calls that this worker has taken and may not start yet, by lane.

    For a slot, a limit over the fleet, or Celery's ``rate_limit``, whose calls stand in buckets
    (celery.worker.consumer.Consumer._limit_task). Not those with an ETA: they hold nothing up.
    """
    from celery_budgets.worker.calls.roster import members_of

    taken = [each for each in members_of(worker_state.reserved_requests) if not each.time_start]
    buckets = filter(None, list(consumer.task_buckets.values()))
    taken += [request for bucket in buckets for request, _ in list(bucket.contents)]
    return Counter(each.lane.name for each in taken if getattr(each, "lane", None) is not None)
