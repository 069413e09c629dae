"""The flight recorder: what the running call of a process is, readable after its death.

The process that runs calls writes; the worker main process reads. One file per process, in
memory where possible.
"""
