"""Chooses the cause of one call from the evidence: pure functions, tried in order.

What a worker has in hand goes before what the broker has, and that before what is remembered. What
can only be concluded is not certain. See also: :mod:`celery_budgets.sending.why.evidence`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from math import inf
from typing import Any

from celery import states

from celery_budgets.model.headers import HEADER_DUE_AT, HEADER_WAITED_FOR
from celery_budgets.model.why import Cause, Why
from celery_budgets.sending.why.evidence import Evidence, LaneNow
from celery_budgets.sending.why.position import estimated

__all__ = ["verdict"]

#: Of several deliveries with one id, the one that tells most.
_RANK = [
    Cause.RUNNING, Cause.LANE, Cause.GLOBAL, Cause.LIMIT, Cause.LIMIT_UNKNOWN, Cause.RATE,
    Cause.MEMORY, Cause.PAUSED, Cause.RETRY, Cause.ETA, Cause.TWIN,
]  # fmt: skip
#: Seconds by which the clocks of two hosts may differ.
SKEW = 0.5


def verdict(evidence: Evidence) -> Why:
    """Return why the call does not run, or what became of it."""
    found = (rule(evidence) for rule in _RULES)
    return next((why for why in found if why is not None), None) or _unknown(evidence)


def _in_hand(e: Evidence) -> Why | None:
    """A worker has it."""
    if not e.in_hand:
        return None
    why = min(
        e.in_hand,
        key=lambda each: (_RANK.index(each.cause), not each.certain, _began(each)),
    )
    holder = _holder(why, e.holders)
    if holder is None:
        return why
    certain = (
        why.cause is not Cause.RUNNING or holder.worker == why.worker
        or abs(_began(why) - _began(holder)) > SKEW
    )  # fmt: skip
    detail = why.detail if why.cause is Cause.TWIN else f"on {why.worker}"
    return Why(
        e.task_id, Cause.TWIN, lane=why.lane, worker=why.worker, certain=certain,
        detail=_joined(_told(holder), detail),
    )  # fmt: skip


def _holder(why: Why, holders: tuple[Why, ...]) -> Why | None:
    """Return the running call of which *why* tells a twin; ``None`` if it tells of that call.

    Of calls with one key, only the body of the one that began first runs; the others look, and go.
    """
    first = min(holders, key=_began, default=None)
    if why.cause is not Cause.RUNNING or first is None:
        return first
    return first if _began(first) < _began(why) and first.task_id != why.task_id else None


def _began(why: Why) -> float:
    return why.since if why.since is not None else inf


def _told(holder: Why) -> str:
    where = f" on {holder.worker}" if holder.worker else ""
    return f"{holder.task_id} runs{where}"


def _found(e: Evidence) -> Why | None:
    """Its message is at the broker: that is exact, on Redis."""
    if e.message is None:
        return None
    headers, position = e.message.headers, e.message.position
    waits = _at_broker(e, e.message.queue, position)
    due = _seconds(headers.get("eta"))
    if waits.since is None and due is None:
        waits = replace(waits, since=_number(headers.get(HEADER_DUE_AT)))
    if due is None or due <= e.now:
        if headers.get("retries"):
            waits = replace(waits, detail=_joined(f"retry {headers['retries']}", waits.detail))
        return waits
    twin = headers.get(HEADER_WAITED_FOR) is not None
    cause = Cause.TWIN if twin else Cause.RETRY if headers.get("retries") else waits.cause
    starts = max(due - e.now, waits.starts_in or 0.0)
    detail = _joined("at the broker, and not due yet", waits.detail)
    return replace(waits, cause=cause, starts_in=starts, detail=detail)


def _aside(e: Evidence) -> Why | None:
    """It waits aside, in Redis, for a key of a limit."""
    if e.aside is None:
        return None
    limit, key, queue, since, position = e.aside
    whose = f"key {key!r}" if key else "no key"
    told = f"aside, in Redis, with {whose}"
    if position is None:
        told = f"its turn has come ({whose}), and it is being sent back to its queue"
    return Why(
        e.task_id, Cause.LIMIT, lane=e.lane_of.get(queue), limit=limit, since=since,
        position=position, certain=position is not None, detail=told,
    )  # fmt: skip


def _ended(e: Evidence) -> Why | None:
    """A worker remembers its end, and it was not sent again since."""
    ended = max(e.ended, key=lambda each: each.at, default=None)
    if ended is None or (e.sent is not None and e.sent.sent_at > ended.at - _early(e)):
        return None
    when = datetime.fromtimestamp(ended.at).astimezone().isoformat(" ", "seconds")
    return Why(
        e.task_id, Cause.ENDED, worker=ended.worker, since=ended.at,
        detail=f"{ended.outcome} at {when} on {ended.worker}",
    )  # fmt: skip


def _early(e: Evidence) -> float:
    """A worker sends a retry just before it notes the end, by the same clock."""
    return 1.0 if e.sent_again else -SKEW


def _stored(e: Evidence) -> Why | None:
    """The result backend has its end."""
    stored = e.stored
    if stored is None or stored.state not in states.READY_STATES:
        return None
    if e.sent is not None and stored.at is not None and e.sent.sent_at > stored.at + SKEW:
        return None
    when = ""
    if stored.at is not None:
        when = f" at {datetime.fromtimestamp(stored.at).astimezone().isoformat(' ', 'seconds')}"
    where = f" on {stored.worker}" if stored.worker else ""
    return Why(
        e.task_id, Cause.ENDED, worker=stored.worker, since=stored.at,
        detail=f"{stored.state}{when}{where}, by its result",
    )  # fmt: skip


def _by_time(e: Evidence) -> Why | None:
    """It was sent to a queue that holds messages, and none that was sent after it has started."""
    if e.sent is None or e.searched or not e.counts.get(e.sent.queue):
        return None
    queue, sent_at = e.sent.queue, e.sent.sent_at
    marks = [each.watermark for each in e.serving(queue) if each.watermark is not None]
    if not e.priorities and marks and max(marks) > sent_at + SKEW:
        return None
    position = None if e.priorities else estimated(e, queue, sent_at, marks)
    if position is not None:
        started = _rate(e.serving(queue)) * e.answered_after
        position = max(0, round(position - started))
    waits = _at_broker(e, queue, position)
    if e.sent_for_twin:
        waits = replace(waits, cause=Cause.TWIN, starts_in=None)
    elif e.sent.due_at > e.now:
        waits = replace(waits, starts_in=max(e.sent.due_at - e.now, waits.starts_in or 0.0))
    if e.priorities:
        about = f"at most {e.counts[queue]} before it, by priority"
        waits = replace(waits, detail=_joined(about, waits.detail), certain=False)
    doubtful = e.silent or e.sent_again or e.aside_unknown or e.unheard(queue)
    return replace(waits, certain=waits.certain and not doubtful)


def _guessed(e: Evidence) -> Why | None:
    """Only one lane, or the one that was named, has messages at the broker."""
    filled = [queue for queue, count in e.counts.items() if count and _may_be_in(e, queue)]
    if e.searched or e.sent is not None or len({e.lane_of.get(queue) for queue in filled}) != 1:
        return None
    waits = _at_broker(e, filled[0], None)
    about = f"if it was sent: at most {sum(e.counts[queue] for queue in filled)} before it"
    return replace(waits, detail=_joined(about, waits.detail), certain=False)


def _may_be_in(e: Evidence, queue: str) -> bool:
    return e.lane is None or e.lane_of.get(queue) == e.lane


_RULES: tuple[Callable[[Evidence], Why | None], ...] = (
    _in_hand, _found, _aside, _ended, _stored, _by_time, _guessed,
)  # fmt: skip


def _at_broker(e: Evidence, queue: str, position: int | None) -> Why:
    """Say why a message of *queue* stays there: by the state of the workers of its lane."""
    lane, workers = e.lane_of.get(queue, queue), e.serving(queue)
    facts: dict[str, Any] = {"lane": lane, "position": position}
    if e.sent is not None and e.sent.queue == queue:
        facts["since"] = e.sent.sent_at
    if not workers and queue not in e.consumed:
        told = f"no answer from {', '.join(e.silent)}" if e.silent else ""
        if e.unheard(queue):
            told = f"{e.unheard(queue)} consume it, and do not answer"
            return Why(e.task_id, Cause.AT_BROKER, certain=False, detail=told, **facts)
        return Why(e.task_id, Cause.NO_WORKER, certain=not e.silent, detail=told, **facts)
    stopped = [each.stopped for each in workers]
    if workers and all(stopped):
        return _stopped(e, workers, **facts)
    open_ones = [each for each in workers if each.stopped is None]
    starts_in = None if position is None else _starts_in(open_ones, position)
    told = "; ".join(_full(each) for each in open_ones if each.active >= each.limit)
    return Why(e.task_id, Cause.AT_BROKER, detail=told, starts_in=starts_in, **facts)


def _stopped(e: Evidence, workers: list[LaneNow], **facts: Any) -> Why:
    """Say that all workers of a lane are paused, or have too little memory."""
    paused = [each for each in workers if each.stopped == "paused"]
    if paused:
        since = max((each.paused_at for each in paused if each.paused_at), default=None)
        names = ", ".join(each.worker for each in paused)
        facts |= {"since": since}
        return Why(e.task_id, Cause.PAUSED, detail=f"paused by an operator on {names}", **facts)
    gates = [(each.worker, *each.gate) for each in workers if each.gate is not None]
    facts |= {"since": max(since for _, since, _ in gates)}
    told = "; ".join(f"{text} on {worker}" for worker, _, text in gates)
    return Why(e.task_id, Cause.MEMORY, detail=told, **facts)


def _full(each: LaneNow) -> str:
    return f"its lane is full on {each.worker}: {each.active} of {each.limit}, {each.holders}"


def _starts_in(workers: list[LaneNow], position: int) -> float | None:
    """Return when *position* calls at the broker, and those that wait in hands, have started."""
    if any(each.active < each.limit for each in workers) and not position:
        return 0.0
    rate = _rate(workers)
    before = position + sum(each.waiting for each in workers)
    return (before + 1) / rate if rate else None


def _rate(workers: list[LaneNow]) -> float:
    """Return how many calls they start per second together."""
    return sum(each.rate for each in workers if each.rate and each.stopped is None)


def _unknown(e: Evidence) -> Why:
    return Why(e.task_id, Cause.UNKNOWN, certain=False, detail="; ".join(_may_be(e)))


def _may_be(e: Evidence) -> Iterator[str]:
    """Yield what is known of a call that nobody knows, and what that can mean."""
    if e.delivered:
        yield "the broker has handed it out, to a worker that does not answer or has just ended"
    if e.silent:
        yield f"no answer from {', '.join(e.silent)}, which may have it"
    if not e.answered:
        yield "no worker answers"
    if e.aside_unknown:
        yield "the Redis of the limits does not answer, where it may wait aside"
    if e.stored is not None and e.stored.state != states.PENDING:
        yield f"its result says {e.stored.state}"
    filled = {queue: count for queue, count in e.counts.items() if count}
    if filled and not e.searched:
        told = ", ".join(f"{queue} ({count})" for queue, count in sorted(filled.items()))
        yield f"it may be in one of these queues, which cannot be searched: {told}"
    if e.sent is not None:
        yield "this process or a worker has sent it, and it has left its queue since"
    yield (
        "it was never sent, or to another broker; or it ended, and its result has expired and "
        "10,000 others ended since or its worker was restarted; or its queue was purged"
    )


def _joined(*texts: str) -> str:
    return "; ".join(text for text in texts if text)


def _number(header: Any) -> float | None:
    return header if isinstance(header, float | int) else None


def _seconds(eta: Any) -> float | None:
    """Return an ETA of a message's headers, seconds since the epoch; ``None`` if it has none."""
    try:
        return datetime.fromisoformat(eta).timestamp()
    except (TypeError, ValueError):
        return None
