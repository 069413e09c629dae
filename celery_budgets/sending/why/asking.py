"""Gathers what is known of one call: by its workers, its broker, its result and this process.

Runs in the process that asks.

See also: :mod:`celery_budgets.sending.why.verdict`, which chooses the cause.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from time import sleep, time
from typing import Any

from celery_budgets.config.settings import settings_of
from celery_budgets.model.priority import low_queue
from celery_budgets.model.why import Cause, Why
from celery_budgets.sending import sent as sending
from celery_budgets.sending.remote_control import Inspection, Replies
from celery_budgets.sending.sent import Sent
from celery_budgets.sending.why.aside import look_aside
from celery_budgets.sending.why.at_broker import AtBroker, counted, look
from celery_budgets.sending.why.evidence import Ended, Evidence, LaneNow, Stored
from celery_budgets.sending.why.verdict import verdict

__all__ = ["COMMAND", "why"]

logger = logging.getLogger(__name__)

#: The remote control command that is sent.
COMMAND = "lanes_why"
#: A message may be on its way from the broker to a worker; then it is asked again, seconds later.
AGAIN_SECONDS = 0.1


def why(
    app: Any,
    inspection: Inspection,
    task_id: str,
    *,
    lane: str | None = None,
    sent_at: float | None = None,
    timeout: float = 1.0,
) -> Why:
    """Return why a call does not run, or what became of it.

    Args:
        app: The Celery app.
        inspection: Asks the workers.
        task_id: Its id.
        lane: Its lane, if that is known.
        sent_at: When it was sent, seconds since the epoch, if that is known.
        timeout: How long workers may take to answer, seconds.

    Raises:
        ConfigurationError: There is no such lane.
        kombu.exceptions.OperationalError: The broker does not answer.
    """
    given = _given(app, task_id, lane, sent_at)

    def ask() -> Why:
        return verdict(replace(_evidence(app, inspection, task_id, given, timeout), lane=lane))

    found = ask()
    if found.cause is Cause.UNKNOWN:
        sleep(AGAIN_SECONDS)
        found = ask()
    if found.lane is None and given is not None:
        known = settings_of(app).lanes.of_queue(given.queue)
        found = replace(found, lane=known.name if known is not None else None)
    return found


def _given(app: Any, task_id: str, lane: str | None, sent_at: float | None) -> Sent | None:
    """Return when and where the call was sent: as the caller says, or as remembered here."""
    remembered = sending.sent(task_id)
    if lane is None:
        return remembered
    queue = settings_of(app).lanes[lane].queue
    if sent_at is not None:
        return Sent(task_id, queue, sent_at, sent_at)
    return remembered


def _evidence(
    app: Any, inspection: Inspection, task_id: str, given: Sent | None, timeout: float
) -> Evidence:
    with app.connection_for_write() as connection:
        # Before the workers, who say what they have started by then: on RabbitMQ their answers
        # are waited for as long as the timeout lasts.
        now, there = time(), counted(connection, _queues(app, given))
        replies = inspection.ask(
            timeout, arguments={"task_id": task_id}, command=COMMAND, tells="in_hand"
        )
        evidence = replace(
            _answers(app, replies, task_id, given), now=now,
            counts={queue: messages for queue, (messages, _) in there.items()},
            consumers={queue: consumers for queue, (_, consumers) in there.items()},
        )  # fmt: skip
        if evidence.in_hand:
            twins = [each for each in _hands(replies) if "key" in each]
            return _with_holders(inspection, evidence, twins, timeout)
        queues = [*_queues(app, evidence.sent), *sorted(evidence.consumed)]
        at_broker = look(connection, list(dict.fromkeys(queues)), task_id)
    return _with_broker(app, evidence, at_broker)


def _hands(replies: Replies) -> list[Mapping[str, Any]]:
    return [each for answer in replies.by_worker.values() for each in answer["in_hand"]]


def _answers(app: Any, replies: Replies, task_id: str, given: Sent | None) -> Evidence:
    """Return what the workers have said."""
    by_worker = replies.by_worker.items()
    again = [answer["sent_again"] for _, answer in by_worker if answer["sent_again"]]
    last = max(again, key=lambda each: each[1], default=None)
    is_again = last is not None and (given is None or last[1] > given.sent_at)
    if last is not None and is_again:
        given = Sent(task_id, last[2], last[1], last[1])
    return Evidence(
        task_id, time(),
        in_hand=tuple(Why.from_json(each) for each in _hands(replies)),
        ended=tuple(Ended(name, *answer["ended"]) for name, answer in by_worker if answer["ended"]),
        lanes=tuple(
            LaneNow.of(name, lane, facts)
            for name, answer in by_worker
            for lane, facts in answer["lanes"].items()
        ),
        consumed=frozenset(queue for _, answer in by_worker for queue in answer["queues"]),
        answered=tuple(replies.by_worker), silent=replies.silent, sent=given,
        sent_again=is_again, sent_for_twin=bool(last is not None and is_again and last[3]),
        priorities=settings_of(app).priorities,
    )  # fmt: skip


def _with_holders(
    inspection: Inspection, evidence: Evidence, twins: list[Mapping[str, Any]], timeout: float
) -> Evidence:
    """Return *evidence* with the running calls that a twin waits for."""
    if not twins or len(twins) < len(evidence.in_hand):
        return evidence
    arguments = {"task_id": evidence.task_id, "holders": twins[0]["key"]}
    replies = inspection.ask(timeout, arguments=arguments, command=COMMAND, tells="holders")
    told = [each for answer in replies.by_worker.values() for each in answer["holders"]]
    return replace(evidence, holders=tuple(Why.from_json(each) for each in told))


def _queues(app: Any, sent: Sent | None) -> list[str]:
    """Return the queues in which the message may be, the likeliest first."""
    settings = settings_of(app)
    queues = [lane.queue for lane in settings.lanes.values()]
    if settings.priorities:
        queues += [low_queue(queue) for queue in queues]
    return list(dict.fromkeys([*([sent.queue] if sent is not None else ()), *queues]))


def _with_broker(app: Any, evidence: Evidence, at_broker: AtBroker) -> Evidence:
    """Return *evidence* with what the broker and the result backend have."""
    lanes = settings_of(app).lanes
    counts = evidence.counts | at_broker.counts
    found = {queue: lanes.of_queue(queue) for queue in counts}
    queue = evidence.sent.queue if evidence.sent is not None else ""
    others = [each for each in sending.of_queue(queue) if each.task_id != evidence.task_id]
    asides = look_aside(app, evidence.task_id)
    return replace(
        evidence,
        aside=asides[0] if asides else None, aside_unknown=asides is None,
        stored=_stored(app, evidence.task_id),
        message=at_broker.message, searched=at_broker.searched, delivered=at_broker.delivered,
        counts=counts, answered_after=time() - evidence.now,
        lane_of={queue: lane.name for queue, lane in found.items() if lane is not None},
        others=tuple(each.sent_at for each in others),
    )  # fmt: skip


def _stored(app: Any, task_id: str) -> Stored | None:
    """Return what the result backend has; ``None`` if there is none, or it does not answer."""
    try:
        meta = app.backend.get_task_meta(task_id, cache=False)
        return Stored(str(meta["status"]), _instant(meta.get("date_done")), meta.get("worker"))
    except Exception as exc:
        # Any backend, and a stored exception that cannot be read here.
        logger.debug("budgets.no_result task_id=%s: %s", task_id, exc)
        return None


def _instant(done: Any) -> float | None:
    """Return when a call ended by its result, seconds since the epoch."""
    if isinstance(done, str):
        done = datetime.fromisoformat(done)
    if not isinstance(done, datetime):
        return None
    return (done if done.tzinfo else done.replace(tzinfo=UTC)).timestamp()
