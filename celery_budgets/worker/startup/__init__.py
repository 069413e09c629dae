"""What is looked at before a worker takes its first call: refuse, or warn, with the remedy.

Runs in the worker main process, and in ``celery lanes check``.
"""
