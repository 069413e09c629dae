"""The worker main process: requests, and what a delivery passes on its way.

It outlives its pool processes, so it decides, counts and tells. Nothing in here may block the
event loop.
"""
