"""The bootstep that registers the commands of this package: every worker passes it.

Celery's signal ``celeryd_init`` would not do: workers that a program starts itself
(``celery.contrib.testing.worker.start_worker``, ``app.Worker``) never send it.
"""

from __future__ import annotations

from celery import bootsteps

# Registering is importing: the panel of commands is one for all workers of a process.
import celery_budgets.worker.remote.commands
import celery_budgets.worker.remote.lane_commands  # noqa: F401

__all__ = ["ControlStep"]


class ControlStep(bootsteps.Step):
    """Has nothing to start: a worker that reads its blueprint knows the commands."""

    label = "Budgets control"
