"""Keeps the kills of all workers for a day, in the Redis of the leases.

Used in the worker main process, and in one that asks.
"""

from __future__ import annotations

import json
from time import time
from typing import Any

from celery_budgets.model.kill import KEPT_SECONDS, Kill
from celery_budgets.shared_state.lease_store import client_of

__all__ = ["MOST_SHARED", "KillStore"]

#: Most kills that are kept for all workers.
MOST_SHARED = 10_000
_NAME = "celery-budgets:kills"
#: Longest wait for Redis, seconds.
_SECONDS = 2.0


class KillStore:
    """The kills of the workers of an app.

    Args:
        app: The Celery app.

    Raises:
        ConfigurationError: It has no Redis for leases.
    """

    def __init__(self, app: Any) -> None:
        self._client, prefix = client_of(app, _SECONDS, "lanes kills")
        self._key = prefix + _NAME

    def add(self, kill: dict[str, Any]) -> None:
        """Keep *kill*, as JSON values, and drop what is a day old."""
        now = time()
        with self._client.pipeline() as pipe:
            pipe.zadd(self._key, {json.dumps(kill): kill["at"]})
            pipe.zremrangebyscore(self._key, "-inf", now - KEPT_SECONDS)
            pipe.zremrangebyrank(self._key, 0, -MOST_SHARED - 1)
            pipe.expire(self._key, int(KEPT_SECONDS))
            pipe.execute()

    def lately(self) -> list[Kill]:
        """Return the kills of the last day, the oldest first."""
        found = self._client.zrangebyscore(self._key, time() - KEPT_SECONDS, "+inf")
        return [Kill.from_json(json.loads(one)) for one in found]

    def close(self) -> None:
        """Close its connections."""
        self._client.close()
