"""Idempotency keys: of the calls that carry one key, one runs, and all get its result.

Runs in the process that runs calls, around the body.
"""
