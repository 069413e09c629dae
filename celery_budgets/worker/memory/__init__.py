"""The memory guard of a worker, which admits calls depending on the memory in use.

Runs in the worker main process, in its event loop.
"""
