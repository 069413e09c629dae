"""Several lanes in one worker: the slots, channels, pauses and limits of each lane.

Runs in the worker main process, in its event loop.
"""
