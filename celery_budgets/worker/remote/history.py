"""The remote control command ``lanes_history``, which the page of the lanes sends.

Registered like :mod:`celery_budgets.worker.remote.commands`.

Runs in the worker main process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.worker.control import inspect_command

from celery_budgets.worker.remote.commands import with_runtime

if TYPE_CHECKING:
    from celery_budgets.worker.runtime import WorkerRuntime

__all__: list[str] = []


@inspect_command(args=[("steps", int), ("every", int)], signature="[steps=1440] [every=6]")
@with_runtime
def lanes_history(
    runtime: WorkerRuntime, _state: Any, steps: Any = 1440, every: Any = 6, **_: Any
) -> Any:
    """The last two hours of each lane in steps of 5 s, of which *every* are one number."""
    return runtime.report.history.to_json(max(1, int(steps)), max(1, int(every)))
