"""The reasons for which a call is rejected, besides those of the memory gate."""

from __future__ import annotations

from typing import Final

#: The deadline that the call inherits has passed.
REASON_DEADLINE: Final = "deadline"
#: No slot of the lane, or of all lanes together, became free in this process in time.
REASON_LANE: Final = "lane_concurrency"
REASON_GLOBAL: Final = "global_concurrency"
#: The blocks around this one hold all slots that it could get.
REASON_NESTED: Final = "nested"
#: A limit over the fleet had no room in time, or the Redis that keeps it did not answer.
REASON_LIMIT: Final = "limit"
REASON_LIMIT_UNKNOWN: Final = "limit_unknown"
#: A request scope has used up its calls or its time, or is cancelled.
REASON_MAX_CALLS: Final = "max_calls"
REASON_SCOPE_TIMEOUT: Final = "scope_timeout"
REASON_SCOPE_CANCELLED: Final = "scope_cancelled"
