"""How a worker takes messages from Redis, and settles them, where Celery leaves it to kombu.

Runs in the worker main process. Stands alone: it knows nothing of lanes and calls.
"""
