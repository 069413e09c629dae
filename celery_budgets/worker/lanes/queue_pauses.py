"""Pauses and resumes the queues of a worker, each for one or several reasons.

A queue is paused by ``cancel_task_queue`` and resumed by ``add_task_queue``: that survives a
reconnect, and loses no message on any broker. Never prefetch 0 (it means unlimited), a patched
``can_consume`` (loses what BRPOP has fetched) or ``Reject(requeue=True)`` (spins).

A queue may be paused for several reasons: it is consumed again when the last one is removed.
Runs in the worker's event loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery_budgets.model.lanes import Lane, Lanes

__all__ = ["QueuePauses"]


class QueuePauses:
    """The pauses of one consumer's queues.

    Args:
        consumer: The Celery consumer; it need not be connected.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        #: The reasons for which each queue is paused, by its name.
        self.paused: dict[str, set[str]] = {}
        #: The queues that the worker was started with.
        self.wanted = frozenset(consumer.app.amqp.queues.consume_from)
        self._celery_add = consumer.add_task_queue

    def attach(self) -> None:
        """Replace Consumer.add_task_queue, also for celery.worker.control.add_consumer.

        Before 5.7 it consumes a known queue again without adding it to ``consume_from``: a second
        pause would ignore it, and a new connection would leave it out.
        """
        self._consumer.add_task_queue = self._add

    def _add(self, queue: str, *args: Any, **kwargs: Any) -> None:
        queues = self._consumer.app.amqp.queues
        if queue in queues and queue not in queues.consume_from:
            queues.select_add(queues[queue])
        self._celery_add(queue, *args, **kwargs)

    def queues_of(self, lanes: Lanes, lane: Lane) -> list[str]:
        """Return the queues of *lane* that this worker should consume, including paused ones."""
        return [queue for queue in self._known() if lanes.of_queue(queue) == lane]

    def lanes_of(self, lanes: Lanes) -> list[Lane]:
        """Return those of *lanes* that this worker serves, including paused ones."""
        served = [lanes.of_queue(queue) for queue in self._known()]
        return [lane for lane in lanes.values() if lane in served]

    def _known(self) -> list[str]:
        consumed = self._consumer.app.amqp.queues.consume_from
        return sorted({*self.wanted, *self.paused, *consumed})

    @property
    def connected(self) -> bool:
        """Whether there is a consumer to pause."""
        return self._consumer.task_consumer is not None

    def pause(self, queues: Iterable[str], reason: str) -> None:
        """Stop consuming *queues* until :meth:`resume` is called with the same *reason*."""
        consumed = self._consumer.app.amqp.queues.consume_from
        for queue in list(queues):
            # Recorded first: cancelling removes the queue even if the connection is lost by
            # then, and only this record shows that it has to be consumed again.
            self.paused.setdefault(queue, set()).add(reason)
            if queue in consumed:
                self._consumer.cancel_task_queue(queue)

    def withhold(self, queue: str, reason: str) -> None:
        """Pause *queue* before there is a consumer; :meth:`resume` begins to consume it."""
        self._consumer.app.amqp.queues.deselect(queue)
        self.paused.setdefault(queue, set()).add(reason)
        self.wanted |= {queue}

    def resume(self, reason: str, queues: Iterable[str] | None = None) -> None:
        """Remove *reason*, for *queues* or all; consume those without another reason again."""
        chosen = list(self.paused) if queues is None else list(queues)
        for queue in chosen:
            reasons = self.paused.get(queue, set())
            if reason not in reasons:
                continue
            if reasons == {reason}:
                self._consumer.add_task_queue(queue)
                del self.paused[queue]
            else:
                reasons.discard(reason)

    def drift(self) -> dict[str, list[str]]:
        """Return the queues that other tools have ``added`` and ``cancelled``."""
        consumed = set(self._consumer.app.amqp.queues.consume_from)
        return {
            "added": sorted(consumed - self.wanted),
            "cancelled": sorted(self.wanted - consumed - set(self.paused)),
        }
