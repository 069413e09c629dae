"""Hooks that run before a process that runs calls ends itself, to flush telemetry.

A list, because this package must not import telemetry: :mod:`celery_budgets.telemetry.spans`
registers itself. Senders import this module too, so it imports nothing.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["BEFORE_EXIT", "FLUSH_SECONDS"]

#: Longest flush of telemetry before a process ends itself, seconds: billiard allows 0.1.
FLUSH_SECONDS = 0.08
#: Functions that are called in turn with the seconds that they may take.
BEFORE_EXIT: list[Callable[[float], object]] = []
