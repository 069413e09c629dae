"""Twins in the worker main process: deliveries that share their result with a running call.

See also: :mod:`celery_budgets.idempotency.run_once`, for the process that runs a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from celery.worker import state

from celery_budgets.model.headers import HEADER_WAITED_FOR

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["expires_alone", "shares_result_of_twin"]


def shares_result_of_twin(request: Delivery) -> bool:
    """Return whether *request* has not started and has waited for a twin that shares its id."""
    headers = request.request_dict
    if request.time_start is not None or HEADER_WAITED_FOR not in headers:
        return False
    # Imported here, since it imports the Redis client and most calls have no key.
    from celery_budgets.idempotency.run_once import stands_for_twin

    return stands_for_twin(headers, request.type, request.id)


def expires_alone(request: Delivery, expire: Callable[[], bool | None]) -> bool:
    """Call *expire*, Celery's own, without its revoking the id that later twins share."""
    known = request.id in state.revoked
    expired = bool(expire())
    if expired and not known and shares_result_of_twin(request):
        state.revoked.discard(request.id)
    return expired
