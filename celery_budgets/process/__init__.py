"""Mechanisms of the process that runs calls: memory, flight recorder, limits."""
