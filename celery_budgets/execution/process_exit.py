"""What a process that runs calls does before it ends itself: it sends what it has buffered.

A list, since what describes calls stands above what interrupts them: :mod:`.telemetry.spans` adds
itself. Imported by senders too, so it imports nothing.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["BEFORE_EXIT", "FLUSH_SECONDS"]

#: Longest flush of telemetry before a process ends itself, seconds: billiard allows 0.1.
FLUSH_SECONDS = 0.08
#: Each is called in turn with the seconds that it may take.
BEFORE_EXIT: list[Callable[[float], object]] = []
