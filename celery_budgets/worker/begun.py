"""Calls on their way into a process at a stop, and when a connection to the broker is lost.

Celery drops then every call that no process has accepted (celery.concurrency.asynpool.AsynPool.
flush, 5.7): its message comes again. One that is written to a process already begins all the
same. It would run twice, also one that must not, and its process would wait 30 s before it
leaves, for somebody to read its result (billiard.pool.Worker._ensure_messages_consumed). So what
the processes say is read first, until it is known which calls have begun.

See also: :mod:`celery_budgets.worker.untracked`, for a process that says nothing in time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from inspect import isgenerator
from time import monotonic
from typing import Any

from celery.concurrency.asynpool import _select

__all__ = ["Begun"]

logger = logging.getLogger(__name__)

#: Longest that a process may take to begin with a call that is written to it, seconds.
BEGIN_SECONDS = 1.0


class Begun:
    """Stands in front of what a pool does before its calls come again from the broker.

    Args:
        asynpool: A ``celery.concurrency.asynpool.AsynPool``.
        hub: The worker's event loop.
        flush: What Celery does then: ``AsynPool.flush``.
    """

    def __init__(self, asynpool: Any, hub: Any, flush: Callable[[], Any]) -> None:
        self._pool = asynpool
        self._hub = hub
        self._flush = flush

    def flush(self) -> Any:
        """Hear which calls have begun, then let Celery drop those that have not."""
        deadline = monotonic() + BEGIN_SECONDS
        try:
            while (jobs := self._on_their_way()) and (left := deadline - monotonic()) > 0:
                self._turn(jobs, left)
        except Exception:
            logger.exception("budgets.begun_unknown: calls that have begun may run twice")
        return self._flush()

    def _on_their_way(self) -> list[Any]:
        """Return the jobs that a process has, or has the beginning of, and has not accepted.

        Only those that it takes next: with ``-O default`` there may be others behind the one
        that it runs, which wait for long.
        """
        jobs = list(self._pool._cache.values())
        busy = {job._worker_pid for job in jobs if job._accepted}
        return [
            job for job in jobs
            if job._write_to is not None and not job._accepted
            and job._write_to.pid not in busy and job._write_to._is_alive()
        ]  # fmt: skip

    def _turn(self, jobs: list[Any], seconds: float) -> None:
        """Wait for the processes of *jobs*; read and write what can be, a message each.

        Mirrors kombu.asynchronous.hub.Hub.create_loop, for those descriptors alone.
        """
        readers = {job._write_to.outqR_fd for job in jobs}
        writing = {job._write_to.inqW_fd: job._writer() for job in jobs}
        writers = {fd for fd, writer in writing.items() if writer in self._pool._active_writers}
        readable, writable, _ = _select(readers, writers, timeout=seconds)
        for descriptor in writable:
            self._go_on(writing[descriptor])
        for descriptor in readable:
            read, arguments = self._hub.readers.get(descriptor) or (
                self._pool.handle_result_event, (descriptor,),
            )  # fmt: skip
            if isgenerator(read):
                self._go_on(read)  # it has the beginning of a message
            else:
                read(*arguments)

    def _go_on(self, generator: Any) -> None:
        with suppress(StopIteration, OSError, EOFError):
            next(generator)
