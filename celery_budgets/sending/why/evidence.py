"""``Evidence``: all that is known of one call, before a cause is chosen.

Values only. See also: :mod:`celery_budgets.sending.why.asking`, which gathers them, and
:mod:`celery_budgets.sending.why.verdict`, which judges them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from celery_budgets.model.why import Why
from celery_budgets.sending.sent import Sent

__all__ = ["Aside", "Ended", "Evidence", "LaneNow", "Message", "Stored"]


class LaneNow(NamedTuple):
    """A lane on one worker."""

    worker: str
    lane: str
    queue: str
    #: The reasons for which its queue is paused.
    paused: tuple[str, ...]
    #: When an operator paused it, seconds since the epoch.
    paused_at: float | None
    #: Since when the memory gate is closed, and why; ``None`` while it is open.
    gate: tuple[float, str] | None
    #: Slots that are taken, of how many.
    active: int
    limit: int
    #: Calls that the worker has received and that wait for a slot.
    waiting: int
    #: What takes the slots, as text.
    holders: str
    #: Calls that start per second while some wait; ``None`` if unknown.
    rate: float | None
    #: When the message that was started last was published, seconds since the epoch.
    watermark: float | None

    @classmethod
    def of(cls, worker: str, lane: str, facts: Mapping[str, Any]) -> Self:
        """Return the state of *lane* in the answer of *worker*."""
        gate = facts.get("gate")
        return cls(
            worker, lane, facts["queue"], tuple(facts["paused"]), facts.get("paused_at"),
            (gate[0], gate[1]) if gate else None, facts["active"], facts["limit"],
            facts["waiting"], facts.get("holders", ""), facts.get("rate"), facts.get("watermark"),
        )  # fmt: skip

    @property
    def stopped(self) -> str | None:
        """The word for what keeps the worker from consuming the lane; ``None`` if nothing does."""
        if "operator" in self.paused:
            return "paused"
        return "memory" if self.gate is not None else None


class Ended(NamedTuple):
    """The end of a call that a worker remembers."""

    worker: str
    outcome: str
    #: Seconds since the epoch.
    at: float


class Stored(NamedTuple):
    """What the result backend has of a call."""

    state: str
    #: When it ended, seconds since the epoch; ``None`` if it has not, or that is unknown.
    at: float | None
    worker: str | None = None


class Message(NamedTuple):
    """The message of a call, found at the broker."""

    queue: str
    #: Messages that the broker hands out before it.
    position: int
    headers: Mapping[str, Any]


class Aside(NamedTuple):
    """What Redis has of a call that waits aside, for a key of a limit that is full."""

    limit: str
    key: str
    #: The queue to which it is sent back.
    queue: str
    #: Since when it waits, seconds since the epoch.
    since: float
    #: Calls of its key that go before it; ``None``: it is being sent back.
    position: int | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one call."""

    task_id: str
    #: When it was asked, seconds since the epoch.
    now: float
    #: What workers have in hand.
    in_hand: tuple[Why, ...] = ()
    #: The calls with the idempotency key that a twin waits for.
    holders: tuple[Why, ...] = ()
    ended: tuple[Ended, ...] = ()
    lanes: tuple[LaneNow, ...] = ()
    #: All queues that are consumed, also those of no lane.
    consumed: frozenset[str] = frozenset()
    #: Workers that have answered, and those that have not.
    answered: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    stored: Stored | None = None
    #: Its message at the broker.
    message: Message | None = None
    #: Whether all messages at the broker were looked at.
    searched: bool = False
    #: Whether the broker has it noted as in a worker's hand.
    delivered: bool = False
    #: What Redis has of it, where it waits aside.
    aside: Aside | None = None
    #: Whether that Redis does not answer.
    aside_unknown: bool = False
    #: When and to which queue it was sent last, if that is known.
    sent: Sent | None = None
    #: Whether that was for a twin that waits.
    sent_for_twin: bool = False
    #: Whether it was sent again by a worker: it has run before.
    sent_again: bool = False
    #: Its lane, by the caller's word.
    lane: str | None = None
    #: Publishing times of other messages to its queue that this process knows.
    others: tuple[float, ...] = ()
    #: Messages at the broker, by queue.
    counts: dict[str, int] = field(default_factory=dict)
    #: Consumers of each queue, where the broker tells that: RabbitMQ does.
    consumers: dict[str, int] = field(default_factory=dict)
    #: How long the workers were waited for, seconds; on RabbitMQ it was counted before that.
    answered_after: float = 0.0
    #: By queue: the lane, for queues of lanes.
    lane_of: Mapping[str, str] = field(default_factory=dict)
    #: Whether the broker orders messages by priority.
    priorities: bool = False

    def unheard(self, queue: str) -> int:
        """Return how many consumers of *queue* are no workers that have answered."""
        heard = sum(each.stopped is None for each in self.serving(queue))
        return max(0, self.consumers.get(queue, 0) - heard)

    def serving(self, queue: str) -> list[LaneNow]:
        """Return the workers that serve the lane of *queue*."""
        lane = self.lane_of.get(queue)
        return [each for each in self.lanes if each.lane == lane]
