"""Limits inside the process that runs calls: a watchdog decides, an interrupt acts.

Runs in the process that runs calls; on prefork it is the second line behind the worker.
"""
