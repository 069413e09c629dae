"""Killed calls as they are remembered, and how they are grouped by where they hung.

Values only: made in the worker main process, shown in one that asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from celery_budgets.model.stack import Stack

__all__ = ["KEPT_SECONDS", "MOST_KEPT", "CallStack", "Kill", "KillGroup", "grouped"]

#: How long kills are remembered, seconds; and how many by each worker.
KEPT_SECONDS = 86_400.0
MOST_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Kill:
    """One call that was killed, or whose process was lost."""

    #: Seconds since the epoch.
    at: float
    task: str
    task_id: str
    lane: str
    worker: str
    #: ``hard_time_limit``, ``memory_limit`` or ``worker_lost``.
    outcome: str
    #: Where it was; ``None`` if that is not known.
    stack: Stack | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "at": self.at, "task": self.task, "task_id": self.task_id, "lane": self.lane,
            "worker": self.worker, "outcome": self.outcome, **_place(self.stack),
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the kill in the output of :meth:`to_json`."""
        frames, stack = data["stack"], None
        if frames is not None:
            stack = Stack.from_json(frames, data["outcome"], data["at"], told=data.get("label"))
        return cls(
            data["at"], data["task"], data["task_id"], data["lane"], data["worker"],
            data["outcome"], stack,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CallStack:
    """A running call, and where it is."""

    task_id: str
    task: str
    lane: str
    worker: str
    #: Seconds since its start.
    seconds: float
    #: Where its body is; ``None`` if that is not known.
    stack: Stack | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        stack = self.stack
        return {
            "task_id": self.task_id, "task": self.task, "lane": self.lane, "worker": self.worker,
            "seconds": self.seconds, **_place(stack),
            "threads": [Stack(one, "asked").to_json() for one in stack.others] if stack else [],
        }  # fmt: skip


def _place(stack: Stack | None) -> dict[str, Any]:
    """Return a stack and its label as JSON values."""
    if stack is None:
        return {"stack": None, "label": None}
    return {"stack": stack.to_json(), "label": stack.label}


class KillGroup(NamedTuple):
    """Kills of one task at one place."""

    kills: int
    #: The place: ``client.py:88 requests.get``; or ``unknown``.
    where: str
    task: str
    outcome: str
    #: The latest of them.
    last: Kill

    def sentence(self, total: int) -> str:
        """Return it as one line of *total* kills."""
        outcome = self.outcome.replace("_", " ")
        return f"{self.kills} of {total} in {self.where} ({self.task}), {outcome}"


def grouped(kills: Iterable[Kill]) -> list[KillGroup]:
    """Return *kills* by place, task and outcome, the most frequent first."""
    groups: dict[tuple[str, str, str], list[Kill]] = {}
    for kill in kills:
        where = kill.stack.label if kill.stack is not None else "unknown"
        groups.setdefault((where, kill.task, kill.outcome), []).append(kill)
    told = [
        KillGroup(len(found), *key, max(found, key=lambda kill: kill.at))
        for key, found in groups.items()
    ]
    return sorted(told, key=lambda group: (-group.kills, group.where, group.task, group.outcome))
