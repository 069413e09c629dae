"""The public import path of :mod:`celery_budgets.batch.progress`."""

from __future__ import annotations

from celery_budgets.batch.progress import Progress, ProgressBar

__all__ = ["Progress", "ProgressBar"]
