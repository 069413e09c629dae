"""The words of this package as frozen, validated facts: lanes, budgets, outcomes, headers.

Imported by every process and by almost every room. No app, no I/O, no state but what
:mod:`~celery_budgets.model.per_process` keeps for others.
"""
