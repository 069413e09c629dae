"""Drains workers: has them take no more work, and watches until they have stopped.

Runs in the process that asks. See also: :mod:`celery_budgets.worker.lanes.leaving`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import sleep
from typing import Any, NamedTuple

from celery_budgets.sending.remote_control import Inspection

__all__ = ["Progress", "drain", "forecast", "known_workers"]

#: Time between two questions, seconds.
TICK = 1.0
#: How often a worker whose calls run may fail to answer before it is given up.
PATIENCE = 5


class Progress(NamedTuple):
    """What a worker that is drained said last."""

    worker: str
    #: The calls that run: ``task``, ``task_id`` and ``seconds`` of each.
    running: Sequence[Mapping[str, Any]]
    #: Whether it does not answer any more although calls ran.
    lost: bool = False


def known_workers(app: Any, timeout: float) -> tuple[list[str], list[str]]:
    """Return the workers with budgets that answer, and those that are there and do not."""
    replies = Inspection(app).ask(timeout)
    return sorted(replies.by_worker), [each for each in replies.silent if each not in replies.plain]


def forecast(app: Any, workers: Iterable[str], timeout: float) -> dict[str, Any]:
    """Return what each of *workers* says of how long its running calls will take."""
    answers = Inspection(app).control("lanes_forecast", {}, list(workers), timeout).by_worker
    return {name: answer for name, answer in answers.items() if "calls" in answer}


def drain(
    app: Any, workers: Iterable[str], timeout: float, *, wait: bool = True
) -> Iterator[Progress]:
    """Drain *workers*, and yield what each says, until all have stopped.

    Args:
        app: The Celery app.
        workers: Their names; not empty.
        timeout: Seconds that they have to answer.
        wait: Whether to ask again until they have stopped; else they are told once.

    Raises:
        kombu.exceptions.OperationalError: The broker does not answer.
    """
    inspection, left = Inspection(app), dict.fromkeys(workers, 0)
    heard: set[str] = set()
    while left:
        replies = inspection.control("lanes_drain", {"watched": wait}, sorted(left), timeout)
        for name in sorted(left):
            answer = replies.by_worker.get(name, {})
            if "running" in answer:
                heard.add(name)
                left[name] = 0
                yield Progress(name, answer["running"])
                if not answer["running"] or not wait:
                    del left[name]
                continue
            left[name] += 1
            if name not in heard or left[name] >= PATIENCE:
                del left[name]
                yield Progress(name, (), lost=True)
        if left:
            sleep(TICK)
