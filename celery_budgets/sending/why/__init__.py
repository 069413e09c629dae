"""Finds out why a call does not run: asks workers and broker, and what this process has sent.

Runs in the process that asks.
"""

from __future__ import annotations
