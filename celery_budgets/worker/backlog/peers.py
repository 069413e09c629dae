"""By what workers tell each other of their lanes: an event of Celery's, which gossip hears.

Each says every few seconds what its lanes run, and what it has read at the broker. So one of them
reads for all, and each knows how busy a lane is over all workers.

Without gossip (``--without-gossip``) a worker hears nothing: then each reads for itself, and what
it says of a lane is about this worker alone.

Runs in the worker main process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any, NamedTuple

from celery_budgets.worker.backlog.backlog import PERIOD, STALE, Backlog, Reading

__all__ = ["EVENT", "LaneShare", "Peers"]

logger = logging.getLogger(__name__)

#: Type of the event; celery.worker.consumer.gossip hears all of the group "worker".
EVENT = "worker-budgets"


class LaneShare(NamedTuple):
    """What one worker has of a lane."""

    #: Calls that run there, or wait in its hands.
    busy: int
    #: Calls that it may run at once.
    slots: int


class Peers:
    """Tells other workers of this one, and hears of them.

    Args:
        name: The name of this worker.
        backlog: Takes what others have read.
        share_of: Returns what this worker has of a lane.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        backlog: Backlog,
        share_of: Callable[[str], LaneShare],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._name = name
        self._backlog = backlog
        self._share_of = share_of
        self._clock = clock
        #: Other workers: when they were heard, and their shares by lane.
        self._heard: dict[str, tuple[float, Mapping[str, LaneShare]]] = {}
        self._told_at = float("-inf")

    def listen(self, gossip: Any) -> None:
        """Hear from others by celery.worker.consumer.gossip.Gossip (5.5 to 5.7)."""
        gossip.event_handlers[EVENT.replace("-", ".")] = self.hear
        gossip.on.node_leave.add(self.leave)

    def leave(self, worker: Any) -> None:
        """Forget a worker that has left."""
        self._heard.pop(worker.hostname, None)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Note what another worker tells; leave out what cannot be read."""
        now, name = self._clock(), event.get("hostname")
        if not isinstance(name, str) or name == self._name:
            return
        try:
            shares = {lane: LaneShare(*map(int, facts)) for lane, facts in event["lanes"].items()}
            readings = {
                queue: Reading(
                    now - float(age), int(messages), None if at is None else float(at), told=True
                )
                for queue, (messages, at, age) in event["queues"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError):
            logger.debug("budgets.peer_unreadable worker=%s", name)
            return
        self._heard[name] = now, shares
        for queue, reading in readings.items():
            self._backlog.note(queue, reading)

    def tell(self, dispatcher: Any) -> None:
        """Tell the others, if there is something new or it was long ago. In the event loop."""
        now, readings = self._clock(), self._backlog.own_readings()
        newest = max((reading.at for reading in readings.values()), default=self._told_at)
        if dispatcher is None or (newest <= self._told_at and now - self._told_at < PERIOD):
            return
        self._told_at = now
        dispatcher.send(
            EVENT,
            lanes={lane: list(self._share_of(lane)) for lane in self._backlog.queues},
            queues={
                queue: [reading.messages, reading.oldest_at, now - reading.at]
                for queue, reading in readings.items()
            },
        )

    def load_of(self, lane: str) -> float | None:
        """Return (running + waiting + backlog) / slots of *lane*, over all workers.

        ``None`` while the backlog is unknown, or if there are no slots.
        """
        messages = self._backlog.of(lane).messages
        shares = [self._share_of(lane), *self._shares_elsewhere(lane)]
        slots = sum(share.slots for share in shares)
        if messages is None or not slots:
            return None
        return (messages + sum(share.busy for share in shares)) / slots

    def _shares_elsewhere(self, lane: str) -> Iterable[LaneShare]:
        since = self._clock() - STALE
        for heard_at, shares in list(self._heard.values()):
            if heard_at >= since and lane in shares:
                yield shares[lane]
