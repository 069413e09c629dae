"""Judges whether a worker works, by what it says of itself.

Runs in the process that asks. See also: :mod:`celery_budgets.worker.remote.health`, which answers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from celery_budgets.units import format_duration

__all__ = ["Finding", "findings", "is_idle"]


class Finding(NamedTuple):
    """What was found of one part of a worker."""

    #: Whether that part works.
    works: bool
    #: The lane, or the part of the worker.
    part: str
    text: str


def is_idle(lane: Mapping[str, Any]) -> bool:
    """Return whether a lane, as its worker describes it, would take a message that waits.

    It takes no more, in spite of free slots, while calls that it has taken wait for a limit.
    """
    takes = lane["consumes"] and not lane["paused"]
    return bool(takes and lane["free"] and not lane["waiting"])


def findings(answer: Mapping[str, Any], stalled: Collection[str] = ()) -> list[Finding]:
    """Return what there is to say of a worker: one for each lane, then of its processes and gate.

    Args:
        answer: Its answer to ``inspect lanes_health``.
        stalled: Lanes of which messages wait at the broker while they are idle.
    """
    found = [_of_lane(name, lane, name in stalled) for name, lane in answer["lanes"].items()]
    processes = answer.get("processes")
    if processes is not None:
        up, size, missing = processes["up"], processes["size"], processes["missing"]
        lost = f", {missing} do not start: see budgets.pool_processes_missing" if missing else ""
        found.append(Finding(up > 0 and not missing, "processes", f"{up} of {size} are up{lost}"))
    if answer.get("gate") == "closed":
        text = "closed: memory is above its limit, and no call starts until it is below"
        found.append(Finding(True, "memory gate", text))
    return found


def _of_lane(name: str, lane: Mapping[str, Any], stalled: bool) -> Finding:
    last = lane["last_start"]
    began = "none yet" if last is None else f"{format_duration(round(last, 1))} ago"
    waiting = lane["waiting"]
    wait = f", {waiting} wait{'s' * (waiting == 1)} in the worker" if waiting else ""
    calls = f"{lane['active']} of {lane['limit']} run{wait}, the last call began: {began}"
    if lane["paused"]:
        who = " and ".join(_PAUSES.get(reason, reason) for reason in lane["paused"])
        return Finding(True, name, f"paused by {who}; {calls}")
    if not lane["consumes"]:
        text = (
            f"does not consume its queue {lane['queue']}; restart the worker, or, where somebody "
            "has cancelled it: celery control add_consumer"
        )
        return Finding(False, name, f"{text}; {calls}")
    if stalled:
        text = f"messages wait in {lane['queue']}, it has free slots, and takes none"
        return Finding(False, name, f"{text}; restart the worker; {calls}")
    return Finding(True, name, f"consumes; {calls}")


#: Who pauses a queue, by the reason.
_PAUSES = {
    "operator": "an operator",
    "memory": "the memory gate",
    "priority": "calls of higher priority",
}
