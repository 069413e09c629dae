"""Joins the histories of all workers: two hours of each lane.

Made in the process that asks. See also: :mod:`celery_budgets.worker.backlog.history`, which keeps
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery_budgets.model.workers.history import STEP_SECONDS, STEPS

__all__ = ["COMMAND", "EVERY", "ask_history", "joined"]

#: The remote control command that is sent; so many steps are one number, here half a minute.
COMMAND = "lanes_history"
EVERY = 6


def ask_history(inspection: Any, timeout: float = 1.0) -> dict[str, Any]:
    """Return the last two hours of each lane, in steps of 30 s, as JSON values.

    Args:
        inspection: Asks the workers.
        timeout: How long they may take to answer, seconds.

    Raises:
        kombu.exceptions.OperationalError: The broker does not answer.
    """
    replies = inspection.ask(
        timeout, arguments={"steps": STEPS, "every": EVERY}, command=COMMAND, tells="lanes"
    )
    return joined(list(replies.by_worker.values()))


def joined(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the histories of all workers as one, by lane and by what is counted.

    ``backlog`` is the highest that any of them knows, ``None`` where none does; the rest is added
    up, but for memory and pauses, of which the highest is taken.
    """
    seconds, numbers = float(STEP_SECONDS * EVERY), STEPS // EVERY - 1
    end = max((answer["end"] for answer in answers), default=0)
    lanes: dict[str, dict[str, list[Any]]] = {}
    for answer in answers:
        behind = round((end - answer["end"]) / seconds)
        for lane, columns in answer["lanes"].items():
            whole = lanes.setdefault(lane, {})
            for what, column in columns.items():
                # A worker that closes its step a moment later knows nothing of the last one yet.
                aligned = [0.0] * numbers + list(column) + [0.0] * behind
                before = whole.get(what, [0.0] * numbers)
                join = _JOINS.get(what, _add)
                whole[what] = [join(a, b) for a, b in zip(before, aligned[-numbers:], strict=True)]
    for columns in lanes.values():
        if "backlog" in columns:
            columns["backlog"] = [n - 1 if n else None for n in columns["backlog"]]
    return {"end": end, "step": seconds, "lanes": lanes}


def _add(one: float, other: float) -> float:
    return one + other


_JOINS: dict[str, Callable[[float, float], float]] = {
    "backlog": max, "rss": max, "paused": max
}  # fmt: skip
