"""What operators ask a worker and tell it, and what it tells of itself.

Runs in the worker main process, in its event loop.
"""
