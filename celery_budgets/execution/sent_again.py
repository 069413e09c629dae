"""Sends the message of the running call again, in its place: it waits, and is no retry.

Nothing is counted and no state is stored. Sent before the delivery is acknowledged, so that a
crash loses neither.

Runs in the process that runs the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.exceptions import Reject

from celery_budgets.model.headers import HEADER_TERMS

__all__ = ["send_again"]


def send_again(task: Any, seconds: float | None, headers: Mapping[str, Any]) -> Reject | None:
    """Send the call of *task* that runs here again.

    Args:
        task: The task, in the process that runs its call.
        seconds: A delay; ``None``: none.
        headers: Added to those of its message.

    Returns:
        What ends this delivery in its place: it could not be sent, and goes back itself.

    Raises:
        Exception: It could not be sent, and is acknowledged already.
    """
    request = task.request
    headers = {**(request.headers or {}), **headers}
    headers.pop(HEADER_TERMS, None)
    try:
        task.signature_from_request(
            request, headers=headers, countdown=seconds, retries=request.retries
        ).apply_async(add_to_parent=False)
    except Exception as exc:
        if not task.acks_late:
            raise
        return Reject(exc, requeue=True)
    return None
