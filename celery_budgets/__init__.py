"""Lanes, time and memory budgets, and whole traces for Celery tasks."""

from __future__ import annotations

from celery_budgets.budgets import Budgets
from celery_budgets.errors import (
    BudgetsError,
    ConfigurationError,
    MemoryLimitExceeded,
    NoServerError,
    RejectedByBudget,
    Throttled,
)
from celery_budgets.model.budget import Budget
from celery_budgets.model.lanes import Lane, Lanes
from celery_budgets.model.limit import Limit
from celery_budgets.model.outcomes import Outcome
from celery_budgets.tasks.task import BudgetedTask

__all__ = [
    "Budget",
    "BudgetedTask",
    "Budgets",
    "BudgetsError",
    "ConfigurationError",
    "Lane",
    "Lanes",
    "Limit",
    "MemoryLimitExceeded",
    "NoServerError",
    "Outcome",
    "RejectedByBudget",
    "Throttled",
]

__version__ = "0.2.0"
