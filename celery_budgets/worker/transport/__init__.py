"""Connections of a worker to Redis, at less cost than kombu's own.

Runs in the worker main process. Stands alone: it knows nothing of lanes and calls.
"""
