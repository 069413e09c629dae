"""``Backlog``: how many messages wait for each lane at the broker, as last read.

Readings come from this worker, or from another that has told of it; whoever read a queue last goes
on to read it, and the others stay silent for as long as they hear of it. So one worker reads a
queue at a time, every :data:`PERIOD` at most.

What nobody has read for :data:`STALE` is unknown: ``None``, never 0.

Lives in the worker main process. See also: :mod:`celery_budgets.worker.backlog.reader`, which
reads, and :mod:`celery_budgets.worker.backlog.peers`, by which workers tell each other.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from time import monotonic, time
from typing import Any, NamedTuple

from celery_budgets.model.lanes import Lane
from celery_budgets.model.priority import Broker, low_queue
from celery_budgets.shared_state.system_thread import system_lock
from celery_budgets.worker.backlog.flow import PERIOD as MINUTE
from celery_budgets.worker.backlog.flow import Flow

__all__ = ["PERIOD", "STALE", "Backlog", "LaneBacklog", "Reading"]

#: Shortest time between two readings of a queue, seconds.
PERIOD = 5.0
#: Age at which a reading says nothing of now, seconds.
STALE = 3 * PERIOD
#: How much longer than :data:`PERIOD` the others wait for who has read last, seconds; they do not
#: all wait equally long, so that one of them takes over.
PATIENCE = (3.0, 6.0)


class Reading(NamedTuple):
    """What a queue had at one instant."""

    #: Monotonic seconds of this host.
    at: float
    #: Messages at the broker, not delivered to any worker.
    messages: int
    #: When the oldest was published, or is due, seconds since the epoch; ``None``: unknown.
    oldest_at: float | None = None
    #: Whether another worker has read it.
    told: bool = False


@dataclass(frozen=True, slots=True)
class LaneBacklog:
    """What waits for one lane at the broker; ``None`` where it is unknown."""

    #: Messages that no worker has taken yet.
    messages: int | None = None
    #: Seconds that the oldest of them has waited; 0 if there is none.
    oldest: float | None = None
    #: Whether ``oldest`` is an estimate: by the message that was started last.
    estimated: bool = False
    #: Messages per second by which the backlog has grown over the last minute; below 0 it shrinks.
    trend: float | None = None
    #: Seconds since it was read.
    age: float | None = None


class Backlog:
    """Keeps the readings of the queues of this worker's lanes.

    Args:
        lanes: The lanes that the worker serves.
        flow: What this worker has started, for an estimate where a broker does not show messages.
        broker: Where priorities are ordered; ``None`` if the app has none.
        clock: Returns monotonic seconds.
        wall: Returns seconds since the epoch.
    """

    def __init__(
        self,
        lanes: Iterable[Lane],
        flow: Flow,
        broker: Broker | None = None,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], float] = time,
    ) -> None:
        also_low = broker is Broker.RABBITMQ
        #: The queues of each lane.
        self.queues: dict[str, tuple[str, ...]] = {
            lane.name: (lane.queue, low_queue(lane.queue)) if also_low else (lane.queue,)
            for lane in lanes
        }
        self._flow = flow
        self._by_priority = broker is not None
        self._clock = clock
        self._wall = wall
        self._patience = random.uniform(*PATIENCE)
        self._shows_messages = False
        self._readings: dict[str, deque[Reading]] = {}
        self._asked_at: dict[str, float] = {}
        #: When a queue was last seen without messages, seconds since the epoch.
        self._empty_at: dict[str, float] = {}
        # The reader's thread writes, and the event loop and the metrics' thread read.
        self._lock = system_lock()

    def read_by(self, *, shows_messages: bool) -> None:
        """Note whether messages can be seen at the broker, and so how old they are."""
        self._shows_messages = shows_messages

    def due(self) -> list[str]:
        """Return the queues that this worker is to read now, which it does."""
        now = self._clock()
        with self._lock:
            due = [
                queue
                for queues in self.queues.values()
                for queue in queues
                if now >= max(self._due_at(queue), self._asked_at.get(queue, -inf) + PERIOD)
            ]
            self._asked_at.update(dict.fromkeys(due, now))
        return due

    def _due_at(self, queue: str) -> float:
        readings = self._readings.get(queue)
        if not readings:
            return -inf
        last = readings[-1]
        return last.at + PERIOD + (self._patience if last.told else 0.0)

    def note(self, queue: str, reading: Reading) -> None:
        """Keep a reading of *queue*, if none is newer."""
        with self._lock:
            readings = self._readings.setdefault(queue, deque())
            if readings and readings[-1].at >= reading.at:
                return
            readings.append(reading)
            # The one that is a minute old stays: the trend is since then.
            while len(readings) > 1 and readings[1].at <= reading.at - MINUTE:
                readings.popleft()
            if not reading.messages:
                self._empty_at[queue] = self._wall() - (self._clock() - reading.at)

    def forget(self, queues: Iterable[str]) -> None:
        """Drop all readings of *queues*: the broker does not tell of them any more."""
        with self._lock:
            for queue in queues:
                self._readings.pop(queue, None)

    def own_readings(self) -> dict[str, Reading]:
        """Return the last readings of the queues that this worker reads."""
        with self._lock:
            last = {queue: readings[-1] for queue, readings in self._readings.items() if readings}
        return {queue: reading for queue, reading in last.items() if not reading.told}

    def of(self, lane: str) -> LaneBacklog:
        """Return what waits for *lane* at the broker: all unknown where it was not read lately."""
        now, queues = self._clock(), self.queues.get(lane, ())
        with self._lock:
            found = [list(self._readings.get(queue, ())) for queue in queues]
        if not found or not all(each and now - each[-1].at <= STALE for each in found):
            return LaneBacklog()
        last = [each[-1] for each in found]
        messages = sum(reading.messages for reading in last)
        return LaneBacklog(
            messages=messages,
            oldest=self._oldest(lane, last) if messages else 0.0,
            estimated=bool(messages) and not self._shows_messages,
            trend=_sum_or_none(_trend(each) for each in found),
            age=now - min(reading.at for reading in last),
        )

    def _oldest(self, lane: str, last: list[Reading]) -> float | None:
        if self._shows_messages:
            known = [reading.oldest_at for reading in last if reading.oldest_at is not None]
            since = min(known, default=None)
        else:
            since = self._estimate(lane)
        return None if since is None else max(0.0, self._wall() - since)

    def _estimate(self, lane: str) -> float | None:
        """Return when the oldest message may have been published.

        After the one that was started last, and after the queue was seen empty. With priorities
        the order of starts tells nothing.
        """
        if self._by_priority:
            return None
        started = self._flow.watermark(lane)
        (queue,) = self.queues[lane]
        known = [at for at in (started, self._empty_at.get(queue)) if at is not None]
        return max(known, default=None)

    def to_json(self, lane: str) -> Mapping[str, Any]:
        """Return what the worker answers of *lane*; sums over the workers are made of it."""
        facts = self.of(lane)
        return {
            "messages": facts.messages,
            "oldest": facts.oldest,
            "estimated": facts.estimated,
            "trend": facts.trend,
            "age": facts.age,
        }


def _trend(readings: list[Reading]) -> float | None:
    """Return the messages per second by which a queue has grown; ``None`` after one reading."""
    first, last = readings[0], readings[-1]
    if last.at - first.at < PERIOD / 2:
        return None
    return (last.messages - first.messages) / (last.at - first.at)


def _sum_or_none(numbers: Iterable[float | None]) -> float | None:
    total = 0.0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total
