"""Finds what counts the deliveries of each channel of a connection to Redis, as it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["on_each_qos"]


def on_each_qos(connection: Any, found: Callable[[Any], None]) -> Any:
    """Tell *found* of the QoS of each channel of *connection*, also of those to come; return it.

    Relies on kombu.transport.virtual.base (5.5 to 5.7): Transport.create_channel, and Channel.qos,
    which makes one of ``Channel.QoS`` when it is first asked for.
    """
    transport = connection.transport
    create = transport.create_channel

    def create_channel(connected: Any) -> Any:
        channel = create(connected)
        _on_qos_of(channel, found)
        return channel

    transport.create_channel = create_channel
    # A transport that is connected has made one already.
    for channel in transport.channels:
        _on_qos_of(channel, found)
    return connection


def _on_qos_of(channel: Any, found: Callable[[Any], None]) -> None:
    if not channel.ack_emulation or "QoS" in vars(channel):
        return  # without an index, or the one that was there, handed out now
    if channel._qos is not None:
        found(channel._qos)
    make = channel.QoS

    def make_qos(*args: Any, **kwargs: Any) -> Any:
        qos = make(*args, **kwargs)
        found(qos)
        return qos

    channel.QoS = make_qos
