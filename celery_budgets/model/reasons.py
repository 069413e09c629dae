"""Why a call was rejected, beside the names of the gate's gauges: the one table."""

from __future__ import annotations

from typing import Final

#: The time that whoever sent or opened it has left is over.
REASON_DEADLINE: Final = "deadline"
#: No slot of the lane, or of all lanes together, came free in this process in time.
REASON_LANE: Final = "lane_concurrency"
REASON_GLOBAL: Final = "global_concurrency"
#: All slots that it could get are held by the blocks that it stands in.
REASON_NESTED: Final = "nested"
#: A request scope has had all of its calls, or all of its time, or is cancelled.
REASON_MAX_CALLS: Final = "max_calls"
REASON_SCOPE_TIMEOUT: Final = "scope_timeout"
REASON_SCOPE_CANCELLED: Final = "scope_cancelled"
