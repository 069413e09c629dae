"""Checks before a worker takes its first call: they refuse to start it, or warn.

Runs in the worker main process, and in ``celery lanes check``.
"""
