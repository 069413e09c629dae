"""One running call: its clock, its memory, and how it is interrupted.

Runs in the process that runs calls: a pool process on prefork, the worker on the other pools,
any program for a block. It knows neither Celery's worker nor telemetry.
"""
