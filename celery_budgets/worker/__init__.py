"""The worker main process: handles deliveries from their arrival to their acknowledgement.

It outlives its pool processes, so it admits, counts and reports calls. Nothing in this package may
block the event loop.
"""
