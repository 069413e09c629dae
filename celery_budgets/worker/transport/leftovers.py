"""What a worker's lost connection to Redis leaves to the next one.

A call that runs when the connection is lost runs on, and its delivery stays noted at Redis: the
next connection takes it over, renews it and acknowledges it. What has not started goes back to the
head of its queue as soon as there is a connection.

Runs in the worker main process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery_budgets.worker.transport.holder import Holder

__all__ = ["Leftovers"]


class Leftovers:
    """What could not be told to Redis before the connection was lost, for the next connection."""

    def __init__(self) -> None:
        self.holder = Holder()
        #: Does the worker reconnect? Else a channel that closes hands back all that is in hand.
        self.reconnects = False
        #: Tags whose acknowledgement Redis has not been sent.
        self.acknowledged: list[str] = []
        #: What is to be handed back, in the order in which it came: messages by tag, ``None``
        #: for one that the worker has not been given.
        self.in_hand: dict[str, Any] = {}
        #: Messages of calls that run on, by tag, until a channel of the next connection has them.
        self.carried: dict[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.acknowledged or self.in_hand or self.carried)

    def acknowledge(self, tag: str) -> None:
        """Settle a delivery of a lost connection, where that has not handed it back."""
        for deliveries in (self.in_hand, self.carried):
            if tag in deliveries:
                del deliveries[tag]
                self.acknowledged.append(tag)

    def requeue(self, tag: str) -> None:
        """Have the next connection hand back a delivery of a call that ran on."""
        if tag in self.carried:
            self.in_hand[tag] = self.carried.pop(tag)

    def carry(self, messages: Iterable[Any]) -> None:
        """Keep *messages*, whose calls run on, instead of handing them back."""
        for message in messages:
            tag = message.delivery_tag
            if self.in_hand.get(tag) is message:
                self.carried[tag] = self.in_hand.pop(tag)

    def take_over(self, channel: Any, queue: str | None = None) -> None:
        """Have *channel* settle what runs on, of *queue* or all that is left.

        It counts there as in hand, as if the channel had fetched it.
        """
        for tag, message in list(self.carried.items()):
            if queue in (None, message.delivery_info.get("routing_key")):
                del self.carried[tag]
                channel.qos.note([tag])
                message.channel = channel
                channel.qos.append(message, tag)
        self.settle(channel)

    def settle(self, channel: Any) -> None:
        """Send by *channel* what was acknowledged, also while the worker connected anew."""
        if self.acknowledged and channel.runs_scripts:
            tags = list(self.acknowledged)
            channel.settle(tags)
            del self.acknowledged[: len(tags)]
