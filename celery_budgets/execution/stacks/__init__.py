"""Stacks of running calls: taken where a call runs, read in the worker main process.

A pool process has two files beside its flight record. The worker has it write to the first by a
signal, which a handler in C answers at once, also in code that keeps the interpreter lock. The
watchdog of the process writes to the second, as long as it can run.
"""
