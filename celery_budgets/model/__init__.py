"""The data model: lanes, budgets, deadlines, outcomes and headers as frozen, validated values.

Imported by every process and by almost every package. No app, no I/O, and no state except what
:mod:`~celery_budgets.model.per_process` keeps for other packages.
"""
