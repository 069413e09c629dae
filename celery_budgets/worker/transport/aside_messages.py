"""Messages of calls that wait aside: packed to be kept in Redis, and sent back to their queues.

A message comes back as it was, with the time at which it was sent first, and with since when it
waits. Its ETA has passed. It goes to the queue that it came from, on whatever broker.

Runs in the worker main process. See also: :mod:`celery_budgets.shared_state.scripts.asides`.
"""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kombu.utils.json import dumps, loads

from celery_budgets.model.headers import HEADER_ASIDE, HEADER_TERMS

if TYPE_CHECKING:
    from celery_budgets.model.limit import Demand
    from celery_budgets.shared_state.answers import Aside

__all__ = ["pack", "send_back"]

logger = logging.getLogger(__name__)

#: What a message has from its sender beside its headers, and not from its broker.
_PROPERTIES = ("correlation_id", "reply_to", "priority", "delivery_mode")
#: Headers of one delivery: kombu has decompressed the body already.
_OF_DELIVERY = ("compression", HEADER_TERMS)


def pack(message: Any, since: int, refused: Demand) -> bytes:
    """Return *message* as one text.

    Args:
        message: A message of kombu.
        since: Since when it waits, microseconds by the clock of Redis.
        refused: What it waits for, which is told to whoever asks why.

    Raises:
        TypeError: It has a header that is no JSON.
    """
    headers = {k: v for k, v in (message.headers or {}).items() if k not in _OF_DELIVERY}
    headers[HEADER_ASIDE] = since
    if headers.get("eta") is not None:
        headers["eta"] = None
    body = message.body if isinstance(message.body, bytes) else message.body.encode()
    properties = message.properties or {}
    packed: str = dumps(
        {
            "queue": message.delivery_info["routing_key"],
            "body": b64encode(body).decode(),
            "content_type": message.content_type,
            "content_encoding": message.content_encoding,
            "headers": headers,
            "refused": [refused.limit.name, refused.key, refused.weight],
            "properties": {k: properties[k] for k in _PROPERTIES if properties.get(k) is not None},
        }
    )
    return packed.encode()


def send_back(app: Any, asides: Iterable[Aside]) -> list[Aside]:
    """Send *asides* to their queues, and return those that are there; never raise."""
    sent: list[Aside] = []
    try:
        with app.producer_or_acquire() as producer:
            for aside in asides:
                _publish(producer, loads(aside.message.decode()))
                sent.append(aside)
    except Exception as exc:
        # Whoever looks next sends the others.
        logger.warning("budgets.limits_failed: calls that wait aside were not sent: %s", exc)
    return sent


def _publish(producer: Any, packed: dict[str, Any]) -> None:
    producer.publish(
        b64decode(packed["body"]), exchange="", routing_key=packed["queue"], serializer=None,
        content_type=packed["content_type"], content_encoding=packed["content_encoding"],
        headers=packed["headers"], **packed["properties"],
    )  # fmt: skip
