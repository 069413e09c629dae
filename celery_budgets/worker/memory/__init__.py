"""The memory guard of a worker: whether it admits calls, by the memory that it takes.

Runs in the worker main process, in its event loop.
"""
