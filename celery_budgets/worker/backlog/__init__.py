"""What waits for each lane at the broker, and how fast it comes and goes."""

from __future__ import annotations
