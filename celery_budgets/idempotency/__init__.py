"""Idempotency keys: of all calls with the same key one runs, and all get its result.

Runs in the process that runs calls, around the body.
"""
