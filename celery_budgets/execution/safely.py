"""Shields calls from failures of measuring and telemetry.

Runs in the process that runs the call.
"""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["guarded"]

logger = logging.getLogger(__name__)


def guarded(function: Any, *args: Any) -> Any:
    """Call *function*; log its failure instead of raising, so that the user's call continues."""
    try:
        return function(*args)
    except Exception:
        logger.exception("budgets.telemetry_failed in %s", function.__qualname__)
        return None
