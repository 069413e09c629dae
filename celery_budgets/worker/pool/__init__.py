"""What the pool runs: the limits of its calls, its size, threads that it has given up.

Runs in the worker main process; reaches into billiard's and Celery's pools, and says where.
"""
