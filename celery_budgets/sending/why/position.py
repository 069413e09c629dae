"""Estimates how many messages of a queue are before one, where the queue cannot be read.

RabbitMQ tells only how many a queue holds. They were published between the lane's watermark and
now; what this process has sent itself in that time is a sample of when, and without a sample they
count as spread evenly.

Runs in the process that asks.
"""

from __future__ import annotations

from collections.abc import Sequence

from celery_budgets.sending.why.evidence import Evidence

__all__ = ["estimated"]

#: Fewest messages of this process that are a sample.
SAMPLE = 10


def estimated(e: Evidence, queue: str, sent_at: float, watermarks: Sequence[float]) -> int | None:
    """Return about how many messages of *queue* are before the one that was sent at *sent_at*.

    Args:
        e: The evidence.
        queue: Name of the queue.
        sent_at: When the message was published, seconds since the epoch.
        watermarks: Those of the lane's workers.
    """
    count = e.counts.get(queue, 0)
    own = sorted(e.others)
    after = sum(at > sent_at for at in own)
    most = max(0, count - 1 - after)
    in_hands = sum(each.waiting for each in e.serving(queue))
    # The youngest messages of the queue: what waits in the hands of workers has left it already.
    mark = max(watermarks, default=None)
    since = [at for at in own if mark is None or at > mark]
    if count + in_hands <= len(since) + 1:
        return most  # this process has sent all of them
    if len(since) >= SAMPLE and (mark is None or own[0] <= mark):
        behind = count * after / (len(since) + 1)
    elif mark is not None and e.now > mark:
        behind = count * min(1.0, (e.now - sent_at) / (e.now - mark))
    else:
        return None
    return min(most, max(0, round(count - 1 - behind)))
