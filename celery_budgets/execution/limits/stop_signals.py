"""Lets a call run on when its process gets the signal that stops the worker.

A terminal that hangs up, ``docker kill``, systemd with ``KillMode=control-group`` and supervisord
with ``stopasgroup`` signal the whole process group: the worker, which stops warmly and waits for
its calls, and the processes of these calls, which would end at once. A signal that the worker
itself sends to end a process is announced in the flight record first.

Runs in the pool process, prefork only.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from billiard import pool
from billiard.common import _shutdown_cleanup
from celery._state import _task_stack

from celery_budgets.execution.flight.recorder import recorder

__all__ = ["STOP_SIGNALS", "leave_to_worker", "stops_pool_process"]

#: Signals that end a pool process, and stop a worker.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)


def leave_to_worker() -> None:
    """Leave stop signals to the worker while a task runs here; for ``worker_process_init``.

    Wraps, in this process, billiard's function that installs the handlers, which it calls after
    that signal (billiard.pool.Worker.after_fork). A signal that the program ignores stays so.
    """
    install: Callable[..., None] = pool.reset_signals
    if not hasattr(install, "__wrapped__"):
        pool.reset_signals = wraps(install)(partial(_install, install))


def _install(install: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    install(*args, **kwargs)
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) is _shutdown_cleanup:
            signal.signal(signum, _handle)


def stops_pool_process(handler: Any) -> bool:
    """Whether *handler* is billiard's, or that of this module."""
    return handler in (_shutdown_cleanup, _handle)


def _handle(signum: int, frame: Any) -> None:
    """End this process, unless the signal is for the worker, which waits for the task here.

    Mirrors billiard.common._shutdown_cleanup. Differs: only between two tasks, or where the worker
    has announced the signal.
    """
    if _task_stack.top is None or recorder().is_announced():
        _shutdown_cleanup(signum, frame)
