"""Frees memory that no call uses, by replacing the processes that hold it.

See also: :mod:`celery_budgets.worker.memory.gate`, which decides when.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.worker import state

from celery_budgets.worker.memory.gate import Gate
from celery_budgets.worker.pool.size import pool_pids

__all__ = ["EXIT_CODE", "give_memory_back"]

logger = logging.getLogger(__name__)

#: Exit code of a worker that exits to free its memory (``EX_OSERR``).
EXIT_CODE = 71


def give_memory_back(consumer: Any, gate: Gate, *, prefork: bool, embedded: bool) -> None:
    """Replace the pool processes, or stop the worker if calls run in its own process.

    Args:
        consumer: The Celery consumer.
        gate: The gate, which is marked as having new processes.
        prefork: Whether calls run in pool processes.
        embedded: Whether the worker runs in a thread of a program, which it must not end.
    """
    gate.fresh = True
    if prefork:
        logger.warning(
            "budgets.processes_replaced count=%s: nothing ran for %g s, and the worker is "
            "above its limit", len(pool_pids(consumer.pool)), gate.max_pause,
        )  # fmt: skip
        for process in list(consumer.pool._pool._pool):
            # As billiard.pool.Pool.shrink ends idle ones; the pool starts new ones.
            process.terminate_controlled()
    elif not state.should_stop and not embedded:
        logger.critical(
            "budgets.worker_leaves exit_code=%s: nothing ran for %g s, and the worker is "
            "above its limit", EXIT_CODE, gate.max_pause,
        )  # fmt: skip
        state.should_stop = EXIT_CODE
