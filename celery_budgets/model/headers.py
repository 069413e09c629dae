"""The headers that this package puts on messages: the one table.

A sender without the package puts none, and its calls run all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Seconds since the epoch from which the message waits: its publishing, or its ETA.
HEADER_DUE_AT: Final = "budgets_due_at"
#: Calls of this task that ended by a kill before, counted over its re-runs.
HEADER_KILLS: Final = "budgets_kills"
#: Until when the call may run: instants of the soft and the hard deadline, seconds since the
#: epoch, or None where it inherits none.
HEADER_DEADLINE: Final = "budgets_deadline"
#: Put on a request by the worker for its pool process (process.call.Terms). Never sent.
HEADER_TERMS: Final = "budgets_terms"

#: Key under which twins of a call are known, where the caller gave one.
HEADER_IDEMPOTENCY_KEY: Final = "budgets_idempotency_key"
#: Fence of the lease that a twin has waited for, and how often it has come back for it.
HEADER_WAITED_FOR: Final = "budgets_waited_for"
#: Path of the request scope that the call belongs to, where there is one: names joined by "/".
HEADER_SCOPE: Final = "budgets_scope"


def seconds_waited(headers: Mapping[str, Any], started_at: float) -> float:
    """Return the seconds between publishing, or the ETA, and the start of a call.

    Args:
        headers: Those of the message; one without the stamp has not waited.
        started_at: Seconds since the epoch.
    """
    return max(0.0, started_at - (headers.get(HEADER_DUE_AT) or started_at))
