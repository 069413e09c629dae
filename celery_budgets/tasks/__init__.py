"""``BudgetedTask``, and how one call of it runs under its budget.

Senders and workers import the class; ``run`` is imported only where calls run.
"""
