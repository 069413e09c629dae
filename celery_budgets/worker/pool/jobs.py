"""The jobs by which a pool runs calls, and which calls it has after a connection is lost.

Runs in the worker main process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from celery.worker import state

from celery_budgets.worker.calls.roster import members_of

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["job_of", "runs", "started_messages"]


def started_messages(reserved: Iterable[Delivery]) -> Iterator[Any]:
    """Yield the messages of calls that the pool has begun, or will: it drops them no more.

    Not of those that Celery has cancelled (worker_cancel_long_running_tasks_on_connection_loss),
    which it wants to be delivered again.

    Args:
        reserved: The calls that hold a slot.
    """
    active = members_of(state.active_requests)
    for request in active:
        if not request._already_cancelled:
            yield request.message
    for request in set(reserved).difference(active):
        job = job_of(request)
        if job is not None and runs(job) and not request._already_cancelled:
            yield request.message


def job_of(request: Delivery) -> Any:
    """Return the pool's job of a call; ``None`` if it has none.

    Stored on the request if calls run in this process (worker.calls.settling.contain); else Celery
    keeps a weak reference (celery.worker.request.create_request_cls).
    """
    if request.job is not None:
        return request.job
    reference = request._apply_result
    return reference() if reference is not None else None


def runs(job: Any) -> bool:
    """Return whether a pool still has *job*; True for an unknown kind of pool.

    Reads billiard.pool.ApplyResult, the future of celery.concurrency.thread.ApplyResult, and
    gevent's greenlet.
    """
    if hasattr(job, "_cache"):
        return not job.ready() and job._job in job._cache
    if hasattr(job, "f"):
        return not job.f.done()
    return not getattr(job, "dead", False)
