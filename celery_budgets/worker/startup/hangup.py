"""Stops a worker warmly when its terminal hangs up.

Runs in the worker main process.
"""

from __future__ import annotations

import signal
from typing import Any

from celery.apps.worker import install_worker_term_handler

__all__ = ["stop_warmly_at_hangup"]


def stop_warmly_at_hangup(worker: Any) -> None:
    """Install Celery's handler of SIGTERM for SIGHUP too, where SIGHUP would kill *worker*.

    Celery restarts at SIGHUP, but on a terminal installs nothing (celery.apps.worker.Worker.
    install_platform_tweaks). ``nohup`` and a handler of the program's own stay. It prints nothing:
    nobody reads it, and before Celery 5.7 the failed write kept the worker from stopping.
    """
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
        install_worker_term_handler(worker, sig="SIGHUP", verbose=False)
