"""The flight recorder: a record of the running call, which outlives its process.

The process that runs calls writes it; the worker main process reads it. One file per process, in
memory where possible.
"""
