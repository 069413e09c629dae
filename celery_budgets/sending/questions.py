"""``Questions``: what a program may ask of all workers, which ``Budgets`` inherits.

Each question is sent by remote control. See also: :mod:`celery_budgets.sending.remote_control`.

Runs in the process that asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_budgets.sending.remote_control import Inspection

if TYPE_CHECKING:
    from celery_budgets.model.kill import CallStack, Kill
    from celery_budgets.model.why import Why
    from celery_budgets.telemetry.snapshots import Concurrency, Memory
    from celery_budgets.telemetry.statistics import Statistics

__all__ = ["Questions"]


class Questions:
    """Asks the workers of an app.

    Args:
        inspection: Sends the questions.
    """

    #: The Celery app.
    app: Any

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection

    def statistics(self, timeout: float = 1.0) -> Statistics:
        """Return the statistics of the calls on all workers, each since its start.

        Args:
            timeout: How long workers may take to answer, seconds.

        Returns:
            The merged statistics; ``silent`` names workers that did not answer, or that run
            without budgets.
        """
        from celery_budgets.telemetry.statistics import Statistics

        answers = self._inspection.ask(timeout)
        merged = Statistics(answers.silent)
        for answer in answers.by_worker.values():
            merged.merge(Statistics.from_json(answer.get("statistics", ())))
        return merged

    def concurrency(self, timeout: float = 1.0) -> Concurrency:
        """Return the current slots of all workers, and what waits for them at the broker.

        ``queues`` has the backlog of each lane, its oldest message, its rates and the time until it
        is empty; ``objectives`` how far a lane keeps its ``slo``.

        Args:
            timeout: How long workers may take to answer, seconds.
        """
        from celery_budgets.telemetry.snapshots import Concurrency

        answers = self._inspection.ask(timeout)
        return Concurrency.of(answers.by_worker, answers.silent)

    def memory(self, timeout: float = 1.0) -> Memory:
        """Return the current memory of all workers, bytes, with the levels and the gates.

        Args:
            timeout: How long workers may take to answer, seconds.
        """
        from celery_budgets.telemetry.snapshots import Memory

        answers = self._inspection.ask(timeout)
        return Memory.of(answers.by_worker, answers.silent)

    def why(
        self,
        task_id: str,
        *,
        lane: str | None = None,
        sent_at: float | None = None,
        timeout: float = 1.0,
    ) -> Why:
        """Return why a call does not run, or what became of it.

        The workers are asked first, then the broker and the result backend. RabbitMQ cannot be
        searched: there a call that no worker has yet is known by the process that has sent it (the
        last 10,000), or by its lane and its time.

        Args:
            task_id: Id of the call.
            lane: Its lane, if it was sent by another process; with *sent_at*.
            sent_at: When it was sent, seconds since the epoch.
            timeout: How long workers may take to answer, seconds.

        Raises:
            ConfigurationError: There is no such lane.
            kombu.exceptions.OperationalError: The broker does not answer.

        Example:
            >>> print(budgets.why(result.id))
            4f1c waits for a slot of lane critic; 2 start before it; starts in about 12 s
        """
        from celery_budgets.sending.why.asking import why

        return why(self.app, self._inspection, task_id, lane=lane, sent_at=sent_at, timeout=timeout)

    def stacks(
        self, task_id: str | None = None, *, lane: str | None = None, timeout: float = 1.0
    ) -> list[CallStack]:
        """Return where running calls are; they go on running.

        Args:
            task_id: Id of a call; ``None``: all, or those of the lane.
            lane: Name of a lane.
            timeout: How long workers may take to answer, seconds.

        Raises:
            ConfigurationError: There is no such lane.
            kombu.exceptions.OperationalError: The broker does not answer.
        """
        from celery_budgets.sending.stacks import stacks

        return stacks(self.app, self._inspection, task_id=task_id, lane=lane, timeout=timeout)[0]

    def kills(self, timeout: float = 1.0) -> list[Kill]:
        """Return the kills of the last day, the oldest first.

        They are remembered by each worker (its last 1,000), and by the Redis of idempotency keys
        where there is one.

        Args:
            timeout: How long workers may take to answer, seconds.

        Raises:
            kombu.exceptions.OperationalError: The broker does not answer.
        """
        from celery_budgets.sending.stacks import kills

        return kills(self.app, self._inspection, timeout)[0]
