"""Limits over the fleet in one worker: what each call needs of them, and who has it.

Runs in the worker main process.
"""
