"""What must not fail a call: measuring it, and telling of it.

Runs in the process that runs the call.
"""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["guarded"]

logger = logging.getLogger(__name__)


def guarded(function: Any, *args: Any) -> Any:
    """Call *function*; a failure of ours is logged, and the user's call goes on."""
    try:
        return function(*args)
    except Exception:
        logger.exception("budgets.telemetry_failed in %s", function.__qualname__)
        return None
