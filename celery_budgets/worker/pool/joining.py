"""Tells the broker how calls end while a stopping worker waits for its pool.

Celery queues what settles a message for the next turn of the event loop, and there is none any
more. Since 5.7 its pool sends it meanwhile (celery.concurrency.prefork._run_ready_callbacks);
before, it goes out when the last call has ended: a worker that is killed before that has calls run
twice that had ended, and what it hands back starts late.

Runs in the worker main process, in its main thread, which owns the broker's connection.
"""

from __future__ import annotations

from typing import Any

from celery.concurrency import prefork
from kombu.message import Message

__all__ = ["settle_while_joining"]


def settle_while_joining(worker: Any) -> None:
    """Have the pool of *worker* send what settles messages, whenever it looks for dead processes.

    Only where Celery does not, and on prefork: threads and gevent have no queue, solo no pool.
    """
    hub, handler = worker.hub, getattr(worker.pool._pool, "_result_handler", None)
    if hub is None or handler is None or hasattr(prefork, "_run_ready_callbacks"):
        return
    join = handler.join_exited_workers

    def settle_and_join(*args: Any, **kwargs: Any) -> Any:
        _settle(hub)
        return join(*args, **kwargs)

    handler.join_exited_workers = settle_and_join


def _settle(hub: Any) -> None:
    """Run what settles messages; the rest stays, such as readers of sockets."""
    for callback in hub._pop_ready():
        if not _settles(callback):
            hub.call_soon(callback)
            continue
        try:
            callback()
        except Exception as exc:
            hub.on_callback_error(callback, exc)


def _settles(callback: Any) -> bool:
    function = getattr(callback, "fun", None)
    return isinstance(getattr(function, "__self__", None), Message) and (
        getattr(function, "__name__", None) in ("ack_log_error", "reject_log_error")
    )
