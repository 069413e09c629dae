"""Judges a worker: whether it works, and what becomes of its calls when it stops. Pure functions.

Runs in the process that asks, and in the worker main process.
"""
