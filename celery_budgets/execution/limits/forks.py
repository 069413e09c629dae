"""Gives the forks that a body makes the default action of stop signals, as outside Celery.

A fork inherits the handlers of its parent. That of a pool process runs in Python, which a process
that waits for a lock of multiprocessing may never do: ``multiprocessing.Pool.terminate()`` waits
for it for ever. Those of a worker stop the worker: a fork of a body on threads does not end at
SIGTERM, at SIGQUIT it cancels the worker's consumers, and at SIGHUP it starts a second worker.

Runs in the process that runs the bodies; the hook of the child in their forks.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from billiard.common import TERMSIGS_IGNORE

from celery_budgets.execution.limits.stop_signals import STOP_SIGNALS, stops_pool_process

__all__ = ["end_by_default"]


def end_by_default() -> None:
    """Reset, in each fork of this process, the stop signals that Celery handles here.

    Installs hooks once per process; a handler of the program's own stays.
    """
    global _installed
    if not _installed and hasattr(os, "register_at_fork"):
        _installed = True
        fork = _Fork()
        os.register_at_fork(
            before=fork.block, after_in_parent=fork.unblock, after_in_child=fork.reset
        )


_installed = False
#: Signals that billiard ignores in pool processes: SIGTERM, if REMAP_SIGTERM is set.
_IGNORED = frozenset(getattr(signal, name) for name in TERMSIGS_IGNORE)


class _Fork(threading.local):
    """Blocks the signals while a thread forks: a new process forgets those not handled yet."""

    _mask: set[Any] = set()

    def block(self) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*STOP_SIGNALS, signal.SIGINT))

    def unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def reset(self) -> None:
        for signum in STOP_SIGNALS:
            handler = signal.getsignal(signum)
            if _is_of_celery(handler) or (handler is signal.SIG_IGN and signum in _IGNORED):
                signal.signal(signum, signal.SIG_DFL)
        # As billiard does in a pool process (billiard.pool.Worker.after_fork): at Ctrl-C the
        # worker waits for its calls, and they may wait for their forks.
        if _is_of_celery(signal.getsignal(signal.SIGINT)):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.unblock()


def _is_of_celery(handler: Any) -> bool:
    """Whether *handler* stops a pool process or a worker (celery.apps.worker)."""
    return stops_pool_process(handler) or (
        getattr(handler, "__module__", None) == "celery.apps.worker"
    )
