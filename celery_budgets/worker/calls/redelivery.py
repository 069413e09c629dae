"""Settles a redelivered message whose first delivery is still running here or has ended.

A broker redelivers a message when the connection was lost before its acknowledgement
(kombu.transport.virtual.base.Channel.close), even if its call runs on or has ended meanwhile.

Runs in the worker main process.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from celery.worker import state

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["is_settled"]

logger = logging.getLogger(__name__)


def is_settled(request: Delivery) -> bool:
    """Return whether *request* must not run: its first delivery has ended, or is still here.

    Or it has waited here for so long that another worker has it by now.
    """
    if request.overtaken:
        state.task_ready(request)
        request.acknowledge()
        return True
    if not request.delivery_info.get("redelivered"):
        return False
    ended = request.roster.already_ended(request)
    if ended is None:
        return _joins_first(request)
    logger.warning("budgets.redelivery_settled task_id=%s outcome=%s", request.id, ended.value)
    state.task_ready(request)
    request.outcome = ended  # of the first delivery: not counted again
    request.acknowledge()
    return True


def _joins_first(request: Delivery) -> bool:
    """Attach *request* to its first delivery, if that is not settled.

    Its call runs on, or has ended and the event loop has not processed that yet.
    """
    first = request.roster.in_hand.get(request.message_key)
    if first is None or first._already_cancelled:
        return False
    state.task_ready(request)
    state.requests[request.id] = first
    first.again = request
    if first.acknowledged:
        request.acknowledge()
    return True
