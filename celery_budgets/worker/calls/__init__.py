"""The calls that a worker has received, their outcomes and their statistics.

Runs in the worker main process.
"""
