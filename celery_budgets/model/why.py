"""``Why``: the reason that one call does not run, or what became of it, as one value.

The causes are a closed list; each has a phrase and a remedy in one table. See also:
:mod:`celery_budgets.sending.why.verdict`, which chooses the cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from time import time
from typing import Any, Self

from celery_budgets.units import format_duration

__all__ = ["Cause", "Why"]


class Cause(StrEnum):
    """What a call waits for, or what became of it."""

    RUNNING = "running"  #: it runs
    LANE = "lane"  #: a worker has it, and no slot of its lane is free there
    GLOBAL = "global"  #: a worker has it, and other lanes use all of its slots
    LIMIT = "limit"  #: a limit of the fleet has no place free
    LIMIT_UNKNOWN = "limit_unknown"  #: the Redis that keeps the fleet's limits does not answer
    RATE = "rate"  #: a rate limit lets it start later
    MEMORY = "memory"  #: the memory gate is closed
    PAUSED = "paused"  #: an operator has paused its lane
    ETA = "eta"  #: it is not due yet
    TWIN = "twin"  #: a call with the same idempotency key runs
    AT_BROKER = "at_broker"  #: it waits in its queue
    NO_WORKER = "no_worker"  #: no worker consumes its queue
    RETRY = "retry"  #: it has run, and waits to run again
    ENDED = "ended"  #: it has ended
    UNKNOWN = "unknown"  #: nobody knows of it


#: By cause: what is said of the call, and what to do about it.
_WORDS: dict[Cause, tuple[str, str]] = {
    Cause.RUNNING: (
        "runs",
        "Nothing, while it is within its limits; `celery control terminate SIGTERM {task_id}` "
        "ends it.",
    ),
    Cause.LANE: (
        "waits for a slot of lane {lane}",
        "Start another worker of the lane, or give it more slots: `celery lanes set {lane} "
        "--concurrency N`.",
    ),
    Cause.GLOBAL: (
        "waits for a slot of its worker, which other calls use",
        "Give the worker more slots (`celery worker -c N`), or lane {lane} a worker of its own.",
    ),
    Cause.LIMIT: (
        "waits for limit {limit}",
        "Raise the limit, or wait until a call that uses it has ended.",
    ),
    Cause.LIMIT_UNKNOWN: (
        "waits until limit {limit} can be read",
        "Bring back the Redis that keeps the limits.",
    ),
    Cause.RATE: (
        "waits for its rate limit, {limit}",
        "Raise the rate: `celery control rate_limit TASK RATE`, and rate_limit on the task.",
    ),
    Cause.MEMORY: (
        "waits until memory is free",
        "Look at `celery lanes status`; give the worker more memory, fewer slots, or a higher "
        "budgets_max_worker_rss.",
    ),
    Cause.PAUSED: (
        "waits until lane {lane} is resumed",
        "`celery lanes resume {lane}`",
    ),
    Cause.ETA: (
        "is not due yet",
        "Nothing: its sender gave an ETA or a countdown.",
    ),
    Cause.TWIN: (
        "waits for a call with the same idempotency key",
        "Nothing: it gets the result of that call, or runs if that one is lost.",
    ),
    Cause.AT_BROKER: (
        "waits at the broker, in lane {lane}",
        "Start another worker of the lane, or give it more slots: `celery lanes set {lane} "
        "--concurrency N`.",
    ),
    Cause.NO_WORKER: (
        "waits at the broker, and no worker consumes lane {lane}",
        "Start one: `celery lanes worker {lane}`.",
    ),
    Cause.RETRY: (
        "waits to run again",
        "Nothing: the task asked for it. Its exception is in the worker's log.",
    ),
    Cause.ENDED: (
        "has ended",
        "Read its result, and the line budgets.call_ended of the worker's log.",
    ),
    Cause.UNKNOWN: (
        "is unknown",
        "Compare the id, the broker's address and its database or virtual host; look for "
        "budgets.call_ended in the workers' logs.",
    ),
}


@dataclass(frozen=True, slots=True)
class Why:
    """Why a call does not run, or what became of it; ``str()`` is the sentence for an operator.

    Example:
        >>> print(Why("4f1c", Cause.LANE, lane="critic", position=2, starts_in=12.0))
        4f1c waits for a slot of lane critic; 2 start before it; starts in about 12 s
    """

    task_id: str
    #: The word, from a closed list; compares equal to plain text.
    cause: Cause
    #: Its lane; ``None`` where that is not known.
    lane: str | None = None
    #: The worker that has it, or had it.
    worker: str | None = None
    #: Name of the limit, if the cause is one.
    limit: str | None = None
    #: When that began, seconds since the epoch: its start, its wait, its end.
    since: float | None = None
    #: How many calls start before it.
    position: int | None = None
    #: Seconds until it starts, estimated.
    starts_in: float | None = None
    #: Whether it is known; else the most likely cause.
    certain: bool = True
    #: The numbers and names behind it.
    detail: str = ""

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self._words(_WORDS[self.cause][1])

    def __str__(self) -> str:
        what = self._words(_WORDS[self.cause][0])
        unsure = not self.certain and self.cause is not Cause.UNKNOWN
        said = [f"{self.task_id} {'probably ' * unsure}{what}", *self._numbers()]
        return "; ".join(said)

    def _numbers(self) -> list[str]:
        said = [self.detail] if self.detail else []
        if self.since is not None and self.cause is not Cause.ENDED:
            said.append(f"for {_rounded(time() - self.since)}")
        if self.position is not None:
            about = "" if self.cause is Cause.LANE else "about " * (self.position > 1)
            said.append(
                f"{about}{self.position or 'none'} start{'s' * (self.position == 1)} before it"
            )
        if self.starts_in is not None:
            said.append(f"starts in about {_rounded(self.starts_in)}")
        return said

    def _words(self, text: str) -> str:
        return text.format(
            task_id=self.task_id, lane=self.lane or "LANE", limit=self.limit or "NAME"
        )

    def to_json(self) -> dict[str, Any]:
        """Return all fields, the remedy and the sentence as JSON values."""
        return {**asdict(self), "cause": self.cause.value, "remedy": self.remedy, "text": str(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the value in the output of :meth:`to_json`; fields of later versions are ignored.

        Raises:
            ValueError: Its cause is not in the list.
        """
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in data.items() if name in known}
        return cls(**{**given, "cause": Cause(data["cause"])})


def _rounded(seconds: float) -> str:
    return format_duration(round(max(0.0, seconds), 1))
