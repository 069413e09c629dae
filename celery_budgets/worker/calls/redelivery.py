"""A message that comes a second time, while its first delivery is still in hand or has ended.

A broker hands a message out again when the connection was lost before it was acknowledged
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
    """Return whether *request* needs no run: its first delivery has ended here, or is in hand.

    Or it waited here for so long that another worker has it by now.
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
    """Leave *request* to its first delivery, where that is still in hand.

    Its call runs on, or has ended and the event loop has not heard of it yet.
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
