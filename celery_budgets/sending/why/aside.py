"""Looks for a call that waits aside: in Redis, for a key of a limit that is full.

Runs in the process that asks. See also: :mod:`celery_budgets.shared_state.scripts.asides`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from celery_budgets.config.settings import settings_of
from celery_budgets.errors import ConfigurationError
from celery_budgets.model.headers import HEADER_ASIDE
from celery_budgets.sending.why.evidence import Aside
from celery_budgets.shared_state.limit_store import LimitStore
from celery_budgets.shared_state.limits_of_app import store_of
from celery_budgets.shared_state.scripts.asides import aside_pattern

__all__ = ["look_aside"]

logger = logging.getLogger(__name__)

#: Names that one question looks at.
_SCANNED = 1000


def look_aside(app: Any, task_id: str) -> list[Aside] | None:
    """Return what waits aside of a call, first whatever waits longest.

    Args:
        app: The Celery app.
        task_id: Id of the call.

    Returns:
        ``None`` where the Redis of the limits does not answer. Nothing where the app has none:
        no worker starts then.
    """
    if all(limit.key is None for limit in settings_of(app).limits.values()):
        return []
    from redis.exceptions import RedisError

    try:
        return sorted(_found(store_of(app), task_id), key=lambda each: each.since)
    except ConfigurationError:
        return []
    except RedisError as exc:
        logger.warning("budgets.limits_failed task_id=%s: %s", task_id, exc)
        return None


def _found(store: LimitStore, task_id: str) -> Iterator[Aside]:
    asides = store.name_for_all("asides")
    found = store.client.hscan_iter(asides, match=aside_pattern(task_id), count=_SCANNED)
    for name, message in found:
        packed = json.loads(message)
        limit, key, weight = packed["refused"]
        line = store.name_of("line", limit, key)
        position = store.client.zrank(line, f"aside:{name.decode()} {weight}")
        since = packed["headers"][HEADER_ASIDE] / 1e6
        yield Aside(limit, key, packed["queue"], since, position)
