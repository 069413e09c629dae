"""Stops a worker when its terminal hangs up, and where nobody reads what it prints any more.

Runs in the worker main process.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from typing import Any

import celery
from celery.apps import worker as program

__all__ = ["stop_though_nobody_reads", "stop_warmly_at_hangup"]


def stop_though_nobody_reads() -> None:
    """Have a worker stop at a signal although it cannot print that it does.

    Celery's handlers print before they note the stop, and until 5.7 a write that failed (the
    reader of a pipe has ended, a terminal hung up) left the note out: nothing stopped the worker
    but SIGKILL. This does what 5.7 does (celery.apps.worker.safe_say).
    """
    if celery.VERSION[:2] >= (5, 7) or hasattr(program.safe_say, "__wrapped__"):
        return

    @functools.wraps(program.safe_say)
    def say(*args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(OSError):
            say.__wrapped__(*args, **kwargs)

    program.safe_say = say


def stop_warmly_at_hangup(worker: Any) -> None:
    """Install Celery's handler of SIGTERM for SIGHUP too, where SIGHUP would kill *worker*.

    Celery restarts at SIGHUP, but on a terminal installs nothing (celery.apps.worker.Worker.
    install_platform_tweaks). ``nohup`` and a handler of the program's own stay. It prints nothing:
    nobody reads it.
    """
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
        program.install_worker_term_handler(worker, sig="SIGHUP", verbose=False)
