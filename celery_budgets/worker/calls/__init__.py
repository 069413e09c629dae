"""The calls that a worker has in hand, how each one ended, and what they add up to.

Runs in the worker main process.
"""
