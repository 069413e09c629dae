"""Measures memory: of one process, of a worker with its processes, of a cgroup.

The only package that reads memory from the operating system; runs in workers and pool processes.
"""
