"""What a connection to Redis has in hand: the messages that its channels have not acknowledged."""

from __future__ import annotations

from typing import Any

__all__ = ["ARRIVED", "forget", "messages_in_hand"]

#: Stands for a message that has been fetched, and that the worker has not been given yet.
ARRIVED = object()


def messages_in_hand(transport: Any) -> dict[str, Any]:
    """Return the messages that the channels of *transport* have in hand, by delivery tag.

    May be called by another thread than the one that consumes. Reads what
    kombu.transport.virtual.base.QoS keeps: deliveries, and tags that are acknowledged already.
    """
    found: dict[str, Any] = {}
    for channel in list(transport.channels or ()):
        qos = channel._qos
        if qos is None or channel.closed:
            continue  # closing, it gives back one after the other
        acknowledged = qos._dirty
        for tag, message in _items(qos._delivered):
            if tag not in acknowledged:
                found[tag] = message if message is not None else ARRIVED
    return found


def forget(message: Any) -> None:
    """Have *message* no longer count as in hand, and tell Redis nothing.

    As kombu.transport.virtual.base.QoS.ack, which may be called in any thread. Not where its tag
    has been delivered anew meanwhile: then it stands for that one.
    """
    qos = getattr(message.channel, "_qos", None)
    if qos is not None and qos._delivered.get(message.delivery_tag) is message:
        qos._quick_ack(message.delivery_tag)


def _items(delivered: Any) -> list[tuple[str, Any]]:
    while True:
        try:
            return list(delivered.items())
        except RuntimeError:
            continue  # changed by the consuming thread meanwhile
