"""The bootstep that registers the remote control commands of this package in every worker.

Celery's signal ``celeryd_init`` would not do: workers that a program starts itself
(``celery.contrib.testing.worker.start_worker``, ``app.Worker``) never send it.
"""

from __future__ import annotations

from celery import bootsteps

# Importing registers them, in the panel of commands that all workers of a process share.
import celery_budgets.worker.remote.commands
import celery_budgets.worker.remote.drain
import celery_budgets.worker.remote.health
import celery_budgets.worker.remote.history
import celery_budgets.worker.remote.lane_commands
import celery_budgets.worker.remote.stacks
import celery_budgets.worker.remote.why  # noqa: F401

__all__ = ["ControlStep"]


class ControlStep(bootsteps.Step):
    """An empty step: a worker that loads its blueprint has the commands."""

    label = "Budgets control"
