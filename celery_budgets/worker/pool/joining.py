"""Tells the broker how calls end while a stopping worker waits for its pool.

Celery queues what settles a message for the next turn of the event loop, and there is none any
more. What it does instead, since 5.7, on prefork (celery.concurrency.prefork._run_ready_callbacks)
is done here on the other pools, and before 5.7 on all: otherwise a worker that is killed before
its last call has ended has calls run twice that had ended, and what it hands back starts late.

Begun by the main thread of the worker main process, which owns the broker's connection and does
not use it while it waits; meanwhile a thread (on gevent, a greenlet) does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

from celery.concurrency import prefork
from kombu.message import Message

__all__ = ["settle_while_joining"]

logger = logging.getLogger(__name__)

#: Celery's, of the same loop: TaskPool.on_stop of prefork.
_SECONDS_BETWEEN = 0.5


def settle_while_joining(worker: Any) -> None:
    """Have what settles messages sent while *worker*, whose event loop has ended, joins its pool.

    Mirrors: celery.concurrency.prefork.TaskPool.on_stop of 5.7, whose own loop is left to it.
    """
    connection = worker.consumer.connection
    leave = getattr(connection and connection.transport, "leave_event_loop", None)
    if leave is not None:
        leave()
    pool = worker.pool
    if isinstance(pool, prefork.TaskPool) and hasattr(prefork, "_run_ready_callbacks"):
        return
    join = pool.on_stop

    def settle_and_join() -> None:
        joined = threading.Event()
        settling = threading.Thread(
            target=_settle_until, args=(worker, joined), name="budgets-settle", daemon=True
        )
        settling.start()
        try:
            join()
        finally:
            joined.set()
            settling.join(timeout=2 * _SECONDS_BETWEEN)

    pool.on_stop = settle_and_join


def _settle_until(worker: Any, joined: threading.Event) -> None:
    while not joined.wait(_SECONDS_BETWEEN):
        for settle in _settling(worker):
            try:
                settle()
            except Exception:
                # As at a kill: the message comes again, to another worker.
                logger.warning("budgets.acknowledge_failed deliveries=1", exc_info=True)


def _settling(worker: Any) -> Iterator[Any]:
    """Take what settles messages out of what waits for a turn of the loop; the rest stays."""
    if worker.hub is not None:
        for callback in worker.hub._pop_ready():
            if _settles(callback):
                yield callback
            else:
                worker.hub.call_soon(callback)
        return
    waiting = worker.consumer._pending_operations  # a list before 5.7
    for operation in list(waiting):
        if _settles(operation):
            waiting.remove(operation)
            yield operation


def _settles(callback: Any) -> bool:
    """Tell whether *callback* acknowledges or rejects one message.

    Mirrors: celery.concurrency.prefork._is_ack_callback.
    """
    function = getattr(callback, "fun", None)
    return isinstance(getattr(function, "__self__", None), Message) and (
        getattr(function, "__name__", None) in ("ack_log_error", "reject_log_error")
    )
