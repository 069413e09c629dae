"""``BudgetedTask``, and the code that runs one call of it under its budget.

Senders and workers import the class; only processes that run calls import ``run``.
"""
