"""The progress of a batch, under the name by which programs import it."""

from __future__ import annotations

from celery_budgets.batch.progress import Progress, ProgressBar

__all__ = ["Progress", "ProgressBar"]
