"""Request scopes in a worker: their statistics, and which are cancelled.

A cancelled scope is stored among Celery's revoked ids (50,000 of them, for 3 hours), under an id
that no call has: so workers that start later learn of it, and it is kept in the state database of
a worker that has one.

See also: :mod:`celery_budgets.sending.scope`, which adds the scope to calls.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery.worker import state as worker_state

from celery_budgets.sending.scope import paths_above, scope_in
from celery_budgets.telemetry.statistics import Statistics

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["REMEMBERED", "Scopes", "cancel", "revoke_if_cancelled"]

logger = logging.getLogger(__name__)

#: Most scopes whose statistics a worker keeps: those whose calls have ended last.
REMEMBERED = 256


class Scopes:
    """Statistics by scope; callers hold the lock of the tally."""

    def __init__(self) -> None:
        self._by_path: OrderedDict[str, Statistics] = OrderedDict()

    def add(self, facts: Mapping[str, Any]) -> None:
        """Count a call that has ended; *facts* as in telemetry.logs.SCHEMA."""
        path = facts.get("scope")
        if path is None:
            return
        self._by_path.setdefault(path, Statistics()).add(facts)
        self._by_path.move_to_end(path)
        if len(self._by_path) > REMEMBERED:
            self._by_path.popitem(last=False)

    def statistics(self, path: str) -> Statistics:
        """Return the statistics of a scope, including nested scopes."""
        merged = Statistics()
        # Over a tuple: garbage collection may end a block meanwhile, which adds an entry.
        for other, statistics in tuple(self._by_path.items()):
            if path in paths_above(other):
                merged.merge(statistics)
        return merged


def _token(path: str) -> str:
    return f"budgets-scope:{path}"


def cancel(path: str, pool: Any, *, running: bool) -> int:
    """Remember that a scope is cancelled.

    Args:
        path: Path of the scope.
        pool: The pool of the worker.
        running: Whether to terminate the running calls of the scope, too.

    Returns:
        The number of terminated calls.
    """
    worker_state.revoked.add(_token(path))
    if not running:
        return 0
    ended = 0
    for request in list(worker_state.active_requests):
        named = scope_in(request.request_dict)
        if named is None or path not in paths_above(named):
            continue
        try:
            request.terminate(pool)
            ended += 1
        except NotImplementedError:
            # Only prefork and gevent can; on other pools the call's limits still apply.
            logger.warning("budgets.cannot_terminate task_id=%s scope=%s", request.id, named)
    return ended


def revoke_if_cancelled(request: Delivery) -> bool:
    """Revoke a call that is about to run if its scope is cancelled; return whether it was."""
    path = scope_in(request.request_dict)
    if path is None or not any(_token(each) in worker_state.revoked for each in paths_above(path)):
        return False
    logger.info("budgets.scope_cancelled task_id=%s scope=%s", request.id, path)
    request._announce_revoked("revoked", False, None, False)
    return True
