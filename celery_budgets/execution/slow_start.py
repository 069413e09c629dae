"""Warns of pool processes that take nearly too long to start.

Runs in the pool process, after all other receivers of ``worker_process_init``.

See also: :mod:`celery_budgets.worker.pool.processes`, for those that never start.
"""

from __future__ import annotations

import logging
from time import time
from typing import Any

import psutil
from billiard import process

from celery_budgets.units import format_duration

__all__ = ["warn_of_slow_start"]

logger = logging.getLogger(__name__)

#: Share of ``worker_proc_alive_timeout`` above which a process warns.
_SHARE = 0.5


def warn_of_slow_start(app: Any) -> None:
    """Log when this process has taken over half of ``worker_proc_alive_timeout`` to start.

    Only the first process of a pool logs it.
    """
    most = float(app.conf.worker_proc_alive_timeout or 0)
    if getattr(process.current_process(), "index", 0):
        return
    seconds = time() - psutil.Process().create_time()
    if most and seconds > _SHARE * most:
        logger.warning(
            "budgets.slow_start seconds=%s worker_proc_alive_timeout=%s: a pool process that "
            "replaces another and takes longer than that is killed, again and again; do less in "
            "worker_process_init, or raise worker_proc_alive_timeout",
            format_duration(round(seconds, 1)), format_duration(most),
        )  # fmt: skip
