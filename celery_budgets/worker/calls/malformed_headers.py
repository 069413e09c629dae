"""Headers of ours that cannot be read: logged and counted, and the call runs as if without them.

A producer may send anything. What is left of it here is what the rest of the worker, and the
process of the call, can rely on. See also: :mod:`celery_budgets.worker.calls.inherited_deadline`,
which reads the deadline.

Runs in the worker main process.
"""

from __future__ import annotations

import logging
from math import isfinite
from typing import TYPE_CHECKING, Any

from kombu.utils.encoding import safe_repr

from celery_budgets.model.headers import HEADER_DUE_AT, HEADER_SCOPE

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["drop_malformed", "tell_of_malformed"]

logger = logging.getLogger(__name__)


def drop_malformed(request: Delivery) -> None:
    """Take off a message that has just arrived what is no instant, and no path of a scope."""
    headers = request.request_dict
    due_at, scope = headers.get(HEADER_DUE_AT), headers.get(HEADER_SCOPE)
    if due_at is not None and not _is_instant(due_at):
        del headers[HEADER_DUE_AT]
        tell_of_malformed(
            request, HEADER_DUE_AT, due_at, "is no instant in seconds since the epoch; leave it out"
        )
    if scope is not None and not isinstance(scope, str):
        del headers[HEADER_SCOPE]
        tell_of_malformed(
            request, HEADER_SCOPE, scope, "is no text; send the call inside of budgets.scope(...)"
        )


def _is_instant(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def tell_of_malformed(request: Delivery, header: str, value: object, why: str) -> None:
    """Log and count a header that cannot be read.

    Args:
        request: The call.
        header: The name of the header.
        value: What it says.
        why: What is wrong with it, and the remedy.
    """
    request.roster.count_failure()
    logger.warning(
        "budgets.header_malformed task=%s task_id=%s header=%s: %.100s %s",
        request.name, request.id, header, safe_repr(value), why,
    )  # fmt: skip
