"""The names of the message headers that this package sets.

All are optional: calls from a sender without the package run as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Instant from which the message waits, its publishing or its ETA; seconds since the epoch.
HEADER_DUE_AT: Final = "budgets_due_at"
#: How often this call was killed before, counted over its re-runs.
HEADER_KILLS: Final = "budgets_kills"
#: Set where an attempt of the call has saved a state for the next one.
HEADER_SAVED: Final = "budgets_saved"
#: Deadline of the call: instants of the soft and the hard limit, seconds since the epoch; None
#: where the call does not inherit one.
HEADER_DEADLINE: Final = "budgets_deadline"
#: Set by the worker on a request, for its pool process (execution.call.Terms). Never published.
HEADER_TERMS: Final = "budgets_terms"

#: Idempotency key that the caller gave; calls with the same key are twins.
HEADER_IDEMPOTENCY_KEY: Final = "budgets_idempotency_key"
#: Fencing token of the lease that a twin waits for, and how often it has been redelivered for it.
HEADER_WAITED_FOR: Final = "budgets_waited_for"
#: Path of the call's request scope: the names of nested scopes, joined by "/".
HEADER_SCOPE: Final = "budgets_scope"
#: The key by name of the limit, for limits with keys; a key here wins over that of the arguments.
HEADER_LIMIT_KEYS: Final = "budgets_limit_keys"
#: For how many calls it counts: a number, or a mapping of limits to numbers.
HEADER_WEIGHT: Final = "budgets_weight"
#: Since when the call waits for a limit with a key, microseconds by the clock of Redis. Set when
#: it was put aside and is sent back.
HEADER_ASIDE: Final = "budgets_aside"


def seconds_waited(headers: Mapping[str, Any], started_at: float) -> float:
    """Return the seconds between publishing, or the ETA, and the start of a call.

    Args:
        headers: The headers of the message; 0 seconds without :data:`HEADER_DUE_AT`.
        started_at: Start of the call, seconds since the epoch.
    """
    return max(0.0, started_at - (headers.get(HEADER_DUE_AT) or started_at))
