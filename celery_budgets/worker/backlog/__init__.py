"""What waits for each lane at the broker, and how fast it comes and goes.

Runs in the worker main process, in part in a thread of its own.
"""

from __future__ import annotations
