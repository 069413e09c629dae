"""Changes a lane on the workers that serve it: pauses, resumes, sets its limit.

They are asked first who serves the lane, so that a missing answer is noticed. Used by ``celery
lanes`` and by the page. Runs in the process that asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from celery_budgets.config.settings import settings_of
from celery_budgets.sending.remote_control import Inspection, Replies

__all__ = ["Changed", "change_lane", "why_silent"]

#: Seconds that workers have to apply the change, which may start pool processes.
CHANGE_SECONDS = 10.0


class Changed(NamedTuple):
    """What came of a change, each time with the name of the worker."""

    #: Those that have done it, and what they say.
    done: list[tuple[str, str]]
    #: Those that have not, and why.
    refused: list[tuple[str, str]]
    #: Those that were to do it and did not answer, and why.
    missing: list[tuple[str, str]]
    #: Those that do not answer and may serve the lane, and why.
    silent: list[tuple[str, str]]
    #: Whether any worker was asked to do it.
    sent: bool

    @property
    def ok(self) -> bool:
        """Whether each has done it, and there was one."""
        return bool(self.done) and not self.refused and not self.missing


def change_lane(
    app: Any,
    command: str,
    lane: str,
    workers: Sequence[str] = (),
    timeout: float = 1.0,
    *,
    inspection: Inspection | None = None,
    **arguments: Any,
) -> Changed:
    """Send *command* to the workers of *lane*, or to the named ones, and return what came of it.

    Args:
        app: The Celery app.
        command: Name of the remote control command.
        lane: Name of the lane.
        workers: Names of the workers to address; empty: all that serve the lane.
        timeout: Seconds that workers have to answer.
        inspection: Asks the workers.
        **arguments: Arguments of the remote control command, besides the lane.

    Raises:
        ConfigurationError: There is no such lane.
        kombu.exceptions.OperationalError: The broker does not answer.
    """
    settings_of(app).lanes[lane]
    inspection = inspection or Inspection(app)
    answers = inspection.ask(timeout)
    recipients = _recipients(answers, lane, workers)
    replies = Replies({}, ())
    if recipients:
        arguments = {"lane": lane, **arguments}
        replies = inspection.control(command, arguments, recipients, CHANGE_SECONDS)
    told = [(name, *_read(command, answer)) for name, answer in replies.by_worker.items()]
    missing = [*replies.silent, *(name for name in workers if name not in answers.by_worker)]
    return Changed(
        done=[(name, text) for name, ok, text in told if ok],
        refused=[(name, text) for name, ok, text in told if not ok],
        missing=[(name, _why_missing(name, answers)) for name in missing],
        silent=[] if workers else [(n, why_silent(n, answers.plain)) for n in answers.silent],
        sent=bool(recipients),
    )


def _recipients(answers: Replies, lane: str, workers: Sequence[str]) -> list[str]:
    """Return the workers to address: of those that answered, *workers*, else the lane's."""
    if workers:
        return [name for name in workers if name in answers.by_worker]
    by_worker = answers.by_worker.items()
    return [name for name, answer in by_worker if lane in answer.get("lanes", ())]


def _why_missing(worker: str, answers: Replies) -> str:
    if worker in answers.plain:
        return why_silent(worker, answers.plain)
    return f"no answer from {worker}"


def why_silent(worker: str, plain: Sequence[str]) -> str:
    """Return the message about a silent *worker*; *plain* ones replied, but without budgets."""
    if worker in plain:
        return f"{worker} runs without budgets, or with an older version of them"
    return f"no answer from {worker}: it hangs, was killed, or runs without budgets"


def _read(command: str, answer: Any) -> tuple[bool, str]:
    """Return whether the *answer* to *command* is a success, and its text."""
    fields = answer if isinstance(answer, Mapping) else {"error": answer}
    if "ok" in fields:
        return True, str(fields["ok"])
    text = fields.get("error", answer)
    if text == repr(KeyError(command)):
        # kombu.pidbox.Node.dispatch, where no such command is registered.
        text = f"it does not know {command}; it runs an older version of celery-budgets"
    return False, str(text)
