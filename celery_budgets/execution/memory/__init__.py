"""Sizes: of one process, of a worker with its processes, of a cgroup.

The only room that asks the operating system for memory; runs in workers and pool processes.
"""
