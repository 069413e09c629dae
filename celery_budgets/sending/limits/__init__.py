"""Shows limits over the fleet, and changes them: for an operator.

Runs in the process that asks.
"""
