"""Asks the workers of one host whether they work.

Runs in the process that asks. See also: :mod:`celery_budgets.model.workers.health`, which judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic, sleep
from typing import Any, NamedTuple

from celery.utils.nodenames import gethostname, nodesplit

from celery_budgets.model.workers.health import Finding, findings, is_idle
from celery_budgets.sending.remote_control import Inspection
from celery_budgets.sending.why.at_broker import queue_counts

__all__ = ["Health", "health"]

#: How long messages have to wait before idle workers to be called stalled, seconds.
STALLED = 3.0
#: Time between two looks, seconds.
TICK = 0.5
_COMMAND = "lanes_health"


class Health(NamedTuple):
    """What was found, by worker."""

    by_worker: Mapping[str, Sequence[Finding]]
    #: Those that did not answer.
    silent: tuple[str, ...]

    @property
    def works(self) -> bool:
        """Whether all have answered, and every part of them works."""
        every = (finding for found in self.by_worker.values() for finding in found)
        return not self.silent and all(finding.works for finding in every)


def health(app: Any, workers: Sequence[str] = (), timeout: float = 5.0) -> Health:
    """Return how the workers do that serve *app* on this host.

    Args:
        app: The Celery app.
        workers: Names of workers to ask instead, on whatever host.
        timeout: Seconds that they have to answer.

    Raises:
        kombu.exceptions.OperationalError: The broker does not answer.
    """
    inspection = Inspection(app)
    answers, silent = _ask(inspection, workers, timeout)
    stalled = _stalled(app, inspection, answers, timeout)
    found = {
        name: findings(answer, stalled.get(name, ())) for name, answer in sorted(answers.items())
    }
    return Health(found, silent)


def _ask(
    inspection: Inspection, workers: Sequence[str], timeout: float
) -> tuple[dict[str, Any], tuple[str, ...]]:
    if workers:
        replies = inspection.control(_COMMAND, {}, workers, timeout)
        ours = {name: answer for name, answer in replies.by_worker.items() if "lanes" in answer}
        return ours, tuple(sorted({*workers} - {*ours}))
    replies = inspection.ask(timeout, command=_COMMAND)
    host = gethostname()
    here = {name: each for name, each in replies.by_worker.items() if each["host"] == host}
    # One that does not answer is known by its name alone, which ends with its host by default.
    silent = {*replies.silent} - {*replies.plain}
    return here, tuple(sorted(name for name in silent if nodesplit(name)[1] == host))


def _stalled(
    app: Any, inspection: Inspection, answers: Mapping[str, Any], timeout: float
) -> dict[str, set[str]]:
    """Return by worker the lanes that start nothing although messages wait and slots are free."""
    suspects = {
        (name, lane): state["starts"]
        for name, answer in answers.items()
        for lane, state in answer["lanes"].items()
        if is_idle(state)
    }
    queues = {lane: answers[name]["lanes"][lane]["queue"] for name, lane in suspects}
    since = monotonic()
    with app.connection_for_write() as connection:
        while suspects:
            counts = queue_counts(connection, {queues[lane] for _, lane in suspects})
            waits = {queue for queue, (messages, _) in counts.items() if messages}
            suspects = {key: n for key, n in suspects.items() if queues[key[1]] in waits}
            if not suspects or monotonic() - since > STALLED:
                break
            sleep(TICK)
            workers = sorted({name for name, _ in suspects})
            suspects = _still(suspects, _ask(inspection, workers, timeout)[0])
    stalled: dict[str, set[str]] = {}
    for name, lane in suspects:
        stalled.setdefault(name, set()).add(lane)
    return stalled


def _still(suspects: Mapping[Any, int], answers: Mapping[str, Any]) -> dict[Any, int]:
    """Return those that are idle still, and have started nothing."""
    return {
        (name, lane): starts
        for (name, lane), starts in suspects.items()
        if name in answers
        and is_idle(answers[name]["lanes"][lane])
        and answers[name]["lanes"][lane]["starts"] == starts
    }
