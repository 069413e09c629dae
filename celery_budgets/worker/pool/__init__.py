"""Extensions of Celery's pools: time limits, size, abandoned threads, child processes.

Runs in the worker main process. It accesses internals of billiard's and Celery's pools; each
place names them.
"""
