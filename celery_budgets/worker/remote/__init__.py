"""Remote control commands, the report of a worker, and its metrics.

Runs in the worker main process, in its event loop.
"""
